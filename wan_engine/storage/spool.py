"""Keeps clips that the bucket did not accept in a folder that outlives the worker, until the bucket
has them. It also counts jobs that killed their worker.

Workers share it without locks, because network volumes do not keep locks. Each file is written
once, under a unique name, and every operation on a file may be repeated. It does not know where the
store puts a clip.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from wan_engine.control import Control
from wan_engine.errors import ConfigurationError, DeadlineExceeded, JobRefused, StorageFailed
from wan_engine.runtime.paths import HALF
from wan_engine.storage.base import Store
from wan_engine.storage.files import (
    CLIP_BYTES,
    age_seconds,
    entries,
    is_file,
    read,
    remove,
    require_writable,
    whole_file,
)
from wan_engine.storage.records import ClipId, job_name

log = logging.getLogger(__name__)

_KEPT = "it is kept and will be uploaded later"
_MODE, _FOLDER_MODE = 0o600, 0o700  # only its caller may see a clip
_STARTS = "starts"
_STAMP = "%Y%m%d-%H%M%S"
_NAME = re.compile(r"([A-Za-z0-9_-]{1,64})\.(\d{8}-\d{6})\.([0-9a-f]{32})")
_LEFTOVER_SECONDS = 3600  # no file takes so long to write
_DAY_SECONDS = 86400


@dataclass(frozen=True)
class _Kept:
    """A clip in the spool, and the record for its store."""

    clip: ClipId
    path: Path
    record: dict[str, Any]

    @property
    def record_path(self) -> Path:
        return self.path.with_suffix(".json")


class SpooledStorage:
    """`store`, with `folder` for the clips that it does not accept. Each is kept for at most
    `keep_days`."""

    def __init__(self, store: Store, folder: Path, keep_days: float = 7) -> None:
        self._store = store
        self._folder = folder.expanduser()
        self._keep_seconds = keep_days * _DAY_SECONDS
        self._flushing = threading.Lock()

    def put(self, path: Path, job_id: str, record: Mapping[str, Any], control: Control) -> str:
        """Do what `Storage.put` does. If `StorageFailed` says that the clip is kept, it is in the
        spool.

        A clip whose job ran out of time while it was stored is kept too, because it is finished.
        """
        try:
            url = self._store.put(path, job_id, record, control)
        except DeadlineExceeded:
            self._keep(path, job_id, record)
            raise
        except StorageFailed as error:
            if self._keep(path, job_id, record):
                raise StorageFailed(f"{error}; {_KEPT}") from error
            raise
        if self._waiting():  # otherwise a worker that lives for days would let them grow too old
            threading.Thread(target=self.flush, name="flush", daemon=True).start()
        return url

    def finished(self, job_id: str, control: Control) -> tuple[str, dict[str, Any]] | None:
        """Do what `Storage.finished` does, after storing a clip of the job that waits here."""
        # Look here first: a clip that another worker delivers meanwhile may be missing here or
        # there, but not in both places.
        kept = self._waiting(job_name(job_id))
        done = self._store.finished(job_id, control)
        if done is not None or not kept:
            return done
        try:
            return self._deliver(kept[-1], control), kept[-1].record
        except StorageFailed as error:
            if not kept[-1].path.exists():  # another worker has just delivered it
                return self._store.finished(job_id, control)
            raise StorageFailed(f"{error}; {_KEPT}") from error

    def claim(self, job_id: str, holder: str, control: Control) -> str | None:
        return self._store.claim(job_id, holder, control)

    def flush(self) -> None:
        """Store the waiting clips, oldest first, until the store fails. Remove clips that are too
        old."""
        if not self._flushing.acquire(blocking=False):
            return
        try:
            self._sweep()
            for kept in self._waiting():
                if read(kept.path, 1) is not None and not self._flush_one(kept):
                    return
        finally:
            self._flushing.release()

    def check(self) -> str:
        folder = self._folder.resolve()
        try:
            folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            require_writable(folder, CLIP_BYTES)
            (folder / _STARTS).mkdir(mode=_FOLDER_MODE, exist_ok=True)
            require_writable(folder / _STARTS)
        except OSError as error:
            raise ConfigurationError(
                f"Clips cannot be kept in {folder} ({error.strerror}): "
                "set WAN_SPOOL_DIR to a folder that this user may write and that has room"
            ) from error
        count = len(self._waiting())
        found = self._store.check()  # a warning stays a warning
        return type(found)(f"{found}; clips that it does not accept wait in {folder} ({count} now)")

    def _flush_one(self, kept: _Kept) -> bool:
        try:
            url = self._deliver(kept, Control())
        except StorageFailed as error:
            if not kept.path.exists():  # another worker has just delivered it
                return True
            log.error(
                "the clip of job %s and later ones stay in %s until the store accepts them; fix "
                "the store's error above, the next start tries again: %s",
                kept.clip.job,
                self._folder,
                error,
            )
            return False
        # The rest of a signed URL is a credential.
        log.info("kept clip of job %s is stored: %s", kept.clip.job, url.partition("?")[0])
        return True

    def _deliver(self, kept: _Kept, control: Control) -> str:
        url = self._store.store(kept.path, kept.clip, kept.record, control)
        remove(kept.record_path, kept.path)
        return url

    def _keep(self, path: Path, job_id: str, record: Mapping[str, Any]) -> bool:
        """Write clip and record to the disk. Returns whether that worked. Does not check for a
        cancel, because the write is short, and the end of the job may be its reason."""
        clip = ClipId.new(job_id)
        target = self._folder / f"{_Name(clip.job, clip.made, clip.token)}.mp4"
        try:
            self._folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            with path.open("rb") as source, whole_file(target, _MODE) as copy:
                shutil.copyfileobj(source, copy)
            # After the clip, so that every record has its clip.
            with whole_file(target.with_suffix(".json"), _MODE) as file:
                file.write(json.dumps({"job_id": job_id, "record": dict(record)}).encode())
        except OSError as error:
            remove(target.with_suffix(".json"), target)
            log.error(
                "the clip of job %s is lost: it could not be kept in %s either: %s; "
                "make room there or set WAN_SPOOL_DIR to another folder",
                clip.job,
                self._folder,
                error,
            )
            return False
        log.warning("clip of job %s is kept in %s until its store takes it", clip.job, self._folder)
        return True

    def _waiting(self, job: str | None = None) -> list[_Kept]:
        """Every waiting clip, or those of one job, each with its record, oldest first."""
        found = []
        for path, name in _named(self._folder, ".json"):
            if job in (None, name.job) and is_file(path.with_suffix(".mp4")):
                kept = _read_record(path, name)
                found += [kept] if kept is not None else []
        return sorted(found, key=lambda kept: (kept.clip.made, kept.clip.token))

    def _sweep(self) -> None:
        """Remove files that are too old or were never completed."""
        for path, name in _named(self._folder, ".mp4"):
            waited_seconds = (datetime.now(UTC) - name.made).total_seconds()
            record = path.with_suffix(".json")
            if waited_seconds > self._keep_seconds:
                log.warning("%s waited for too long and is removed", path.name)
                remove(record, path)
            elif waited_seconds > _LEFTOVER_SECONDS and not is_file(record):
                remove(path)
        halves = [path for path in entries(self._folder) if path.match(f".*{HALF}")]
        alone = [
            path
            for path, _ in _named(self._folder, ".json")
            if not is_file(path.with_suffix(".mp4"))
        ]
        remove(*(path for path in halves + alone if age_seconds(path) > _LEFTOVER_SECONDS))


class CrashCounts:
    """Counts the starts of a job that did not end, in any process. Such a start killed a worker.

    Without a `folder`, nothing is counted. `limit` such starts are forgiven for `keep_days`. Marks
    are empty files, one per start, so nothing in them can be damaged. A folder that cannot be used
    is logged, and no job is refused.
    """

    def __init__(self, folder: Path | None, limit: int = 2, keep_days: float = 7) -> None:
        self._folder = folder and folder.expanduser() / _STARTS
        self._limit = limit
        self._keep_seconds = keep_days * _DAY_SECONDS

    @contextmanager
    def counting(self, job_id: str) -> Iterator[None]:
        """Count a start around the work of a job. Only the end of this process counts as a
        crash."""
        self.begin(job_id)
        try:
            yield
        finally:
            self.end(job_id)

    def begin(self, job_id: str) -> None:
        """Count a start. If that would be too many, count nothing and raise `JobRefused`."""
        if self._folder is None:
            return
        count = len(self._marks(job_id))
        if count >= self._limit:
            raise JobRefused(count)
        try:
            self._folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            with whole_file(self._folder / f"{job_name(job_id)}.{uuid4().hex}", _MODE):
                pass
        except OSError as error:
            log.warning("start of job %s not counted: %s", job_name(job_id), error)

    def end(self, job_id: str) -> None:
        """Forget the starts of a job that ended, however it did."""
        remove(*self._marks(job_id))

    def _marks(self, job_id: str) -> list[Path]:
        paths = entries(self._folder) if self._folder else []
        old = [path for path in paths if age_seconds(path) > self._keep_seconds]
        remove(*old)
        return [path for path in paths if path not in old and path.stem == job_name(job_id)]


# --- spooled files --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Name:
    """The data in the name of a spooled file."""

    job: str
    made: datetime
    token: str

    def __str__(self) -> str:
        return f"{self.job}.{self.made:{_STAMP}}.{self.token}"

    @classmethod
    def read(cls, text: str) -> _Name | None:
        found = _NAME.fullmatch(text)
        try:
            return found and cls(
                found[1], datetime.strptime(found[2], _STAMP).replace(tzinfo=UTC), found[3]
            )
        except ValueError:  # month 13
            return None


def _named(folder: Path, suffix: str) -> Iterator[tuple[Path, _Name]]:
    for path in entries(folder):
        name = _Name.read(path.stem) if path.suffix == suffix else None
        if name is not None:
            yield path, name


def _read_record(path: Path, name: _Name) -> _Kept | None:
    data = read(path)
    if data is None:
        return None
    try:
        stored = json.loads(data)
        job_id, record = stored["job_id"], dict(stored["record"])
        if job_name(job_id) != name.job:
            raise ValueError("of another job")
    except (ValueError, KeyError, TypeError) as error:
        log.error("%s is damaged, so its clip stays there: %s", path, error)
        return None
    return _Kept(ClipId(job_id, name.made, name.token), path.with_suffix(".mp4"), record)
