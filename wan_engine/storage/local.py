"""Stores clips in a folder of this machine, with `file:` URLs."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wan_engine.control import Control
from wan_engine.errors import ConfigurationError, StorageFailed
from wan_engine.storage.files import (
    CLIP_BYTES,
    first_file,
    read,
    remove,
    require_writable,
    whole_file,
)
from wan_engine.storage.records import (
    NO_CLAIM,
    NO_RECORD,
    NOT_READ,
    NOT_STORED,
    ClipId,
    decode_claim,
    decode_record,
    encode_claim,
    encode_record,
    job_name,
)

log = logging.getLogger(__name__)

_COPY_BYTES = 1024 * 1024


class LocalStorage:
    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser()

    def put(self, path: Path, job_id: str, record: Mapping[str, Any], control: Control) -> str:
        clip = ClipId.new(job_id)
        target = self._copy(path, clip, control)
        try:
            self._write_record(target, job_id, record)
        except OSError as error:
            log.warning(NO_RECORD, clip.job, error)
        return target.resolve().as_uri()

    def store(self, path: Path, clip: ClipId, record: Mapping[str, Any], control: Control) -> str:
        target = self._copy(path, clip, control)
        try:
            self._write_record(target, clip.job_id, record)
        except OSError as error:
            raise self._failed(clip, error) from error
        return target.resolve().as_uri()

    def finished(self, job_id: str, control: Control) -> tuple[str, dict[str, Any]] | None:
        control.checkpoint()
        try:
            found = decode_record(self._record_path(job_id).read_bytes(), job_id)
            if found is None or Path(found[0]).name != found[0]:
                return None
            target = self._folder / found[0]
            return (target.resolve().as_uri(), found[1]) if target.is_file() else None
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning(NOT_READ, job_name(job_id), error)
            return None

    def claim(self, job_id: str, holder: str, control: Control) -> str | None:
        control.checkpoint()
        path = self._claim_path(job_id)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if first_file(path, encode_claim(holder)):
                return holder
            return decode_claim(path.read_bytes(), job_id)
        except OSError as error:
            log.warning(NO_CLAIM, job_name(job_id), error)
            return None

    def flush(self) -> None:
        """Do nothing, because a folder stores a clip at once or not at all."""

    def forget(self, job_id: str) -> None:
        """Remove the clip and the record of a finished job, if they exist. Logs failures."""
        record = self._record_path(job_id)
        found = decode_record(data, job_id) if (data := read(record)) is not None else None
        if found is not None and Path(found[0]).name == found[0]:
            remove(self._folder / found[0])
        remove(record, self._claim_path(job_id))

    def check(self) -> str:
        folder = self._folder.resolve()
        try:
            require_writable(folder, CLIP_BYTES)
            require_writable(self._record_path("").parent)
        except OSError as error:
            raise ConfigurationError(
                f"Clips cannot be written to {folder} ({error.strerror}): "
                "set WAN_OUTPUT_DIR to a folder that this user may write and that has room"
            ) from error
        return f"clips go to the folder {folder}"

    def _copy(self, path: Path, clip: ClipId, control: Control) -> Path:
        target = self._folder / f"{clip.made:%Y%m%d-%H%M%S}-{clip.job}-{clip.token[:8]}.mp4"
        control.checkpoint()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as source, whole_file(target) as copy:
                while chunk := source.read(_COPY_BYTES):
                    control.checkpoint()
                    copy.write(chunk)
        except OSError as error:
            raise self._failed(clip, error) from error
        return target

    def _failed(self, clip: ClipId, error: OSError) -> StorageFailed:
        log.error("clip of job %s not stored in %s: %s", clip.job, self._folder, error)
        full = ": no space left on the device" if error.errno == errno.ENOSPC else ""
        return StorageFailed(NOT_STORED + full)

    def _write_record(self, target: Path, job_id: str, record: Mapping[str, Any]) -> None:
        path = self._record_path(job_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(encode_record(record, target.name))

    def _record_path(self, job_id: str) -> Path:
        return self._folder / ".jobs" / f"{job_name(job_id)}.json"

    def _claim_path(self, job_id: str) -> Path:
        return self._record_path(job_id).with_suffix(".claim")
