"""Writes files that are either complete or absent if the machine stops, in folders that workers
share."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from wan_engine.runtime.paths import HALF, beside

log = logging.getLogger(__name__)

_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)

CLIP_BYTES = 256 * 1024 * 1024
"""Room for a clip: about 15 s of 1080p at the best quality setting."""


@contextmanager
def whole_file(target: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file that appears under its name once it is complete and on the disk, or not at all.

    Its folder must exist. The umask is taken off `mode`. Raises `OSError`.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with (
        beside(target) as half,
        open(os.open(half, flags, mode), "wb") as file,  # noqa: PTH123 - of a descriptor
    ):
        yield file
        file.flush()
        _sync(file.fileno())
    sync_folder(target.parent)


def first_file(target: Path, data: bytes) -> bool:
    """Write `data` to `target` if there is no such file yet. Returns whether it did. The file is
    complete as soon as it exists. Its folder must exist. Raises `OSError`."""
    made = target.with_name(f".{uuid4().hex}{HALF}")
    try:
        with whole_file(made) as file:
            file.write(data)
        os.link(made, target)
        sync_folder(target.parent)
    except FileExistsError:
        return False
    finally:
        made.unlink(missing_ok=True)
    return True


def sync_folder(folder: Path) -> None:
    """Make sure that the names added to `folder` survive a crash. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    """Call `fsync` if the file system has it. Some network file systems have none for folders,
    others none at all; these write at once, or when the file is closed."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def require_writable(folder: Path, room_bytes: int = 0) -> None:
    """Create `folder` if needed, then write, read and remove a file in it. Raises `OSError`, also
    if there is less room than `room_bytes`."""
    folder.mkdir(parents=True, exist_ok=True)
    path, written = folder / f".{uuid4().hex}.check", os.urandom(4096)
    try:
        with whole_file(path) as file:
            file.write(written)
        if path.read_bytes() != written:
            raise OSError(errno.EIO, "the file does not contain what was written")
    finally:
        path.unlink(missing_ok=True)
    if shutil.disk_usage(folder).free < room_bytes:
        raise OSError(errno.ENOSPC, f"less than {room_bytes / 2**20:.0f} MB are free")


# --- files that other workers may remove ----------------------------------------------------------


def entries(folder: Path) -> list[Path]:
    """The entries of a folder. An error is logged, and the result is then empty."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        log.error("%s cannot be read: %s", folder, error)
        return []


def is_file(path: Path) -> bool:
    """Whether it is a file, not a link that leads out of the folder."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def age_seconds(path: Path) -> float:
    """Seconds since it was last written; 0 if it is gone."""
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0


def read(path: Path, count: int = -1) -> bytes | None:
    """Its bytes. None if it was just removed or, with a line in the log, if it cannot be read."""
    try:
        # A link is refused, and a pipe does not block.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - of a descriptor
            return file.read(count)
    except FileNotFoundError:
        return None
    except OSError as error:
        log.error("%s cannot be read and is left alone: %s", path, error)
        return None


def remove(*paths: Path) -> None:
    """Remove it. Links are removed, not followed. Failures are logged."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed: %s", path, error)
