"""Makes a job's scratch folder if there is room for it, and always removes it when the job ends."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wan_engine.errors import ConfigurationError, DiskFull, Warned
from wan_engine.runtime import paths
from wan_engine.settings import Settings

log = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of `flock` on file systems without locks: some NFS, FUSE and SMB mounts."""

_PREFIX = "wan-engine-job-"
_NEW_SECONDS = 10
_UNLOCKED = ".unlocked"  # marks a folder that could not be locked
_UNLOCKED_SECONDS = 24 * 3600  # no running job goes this long without writing
_FULL_BYTES = 32 * 1024 * 1024  # with less left, a failed job has failed for lack of space


@contextmanager
def job_folder(settings: Settings) -> Iterator[Path]:
    """A new folder for one job, removed when the job ends. Raises `DiskFull` if there is no room,
    and instead of the error of a job that filled the disk."""
    parent = _parent(settings)
    _require_room(parent, settings.scratch_min_gb)
    try:
        folder, held = _held_folder(parent)
    except OSError as error:
        log.error("no job folder in %s: %s", parent, error)
        raise DiskFull from error
    try:
        yield folder
    except Exception as error:
        if _free_bytes(parent) < _FULL_BYTES:
            log.error("%s is full: make room, or set WAN_SCRATCH_DIR (%s)", parent, error)
            raise DiskFull from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _held_folder(parent: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor whose lock tells `clear_abandoned` that it is in use.
    Without locks, a file marks it. Raises `OSError`."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    held = None
    try:
        held = os.open(folder, os.O_RDONLY)
        if not _locks(held, fcntl.LOCK_SH):
            (folder / _UNLOCKED).touch()
    except OSError:
        if held is not None:
            os.close(held)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder, held


def _locks(held: int, how: int) -> bool:
    """Whether the file system has locks. Takes one of the kind `how`. Raises `BlockingIOError` if
    another process has it, and `OSError`."""
    try:
        fcntl.flock(held, how)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def clear_abandoned(settings: Settings) -> int:
    """Remove the job folders that killed processes of this user left behind. Returns how many."""
    count = 0
    for folder in _parent(settings).glob(f"{_PREFIX}*"):
        if not folder.is_symlink() and folder.is_dir() and _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
            count += 1
    if count:
        log.info("removed %d job folders that a killed process left behind", count)
    return count


def check(settings: Settings) -> str:
    """One line that says where job folders are made. Raises `ConfigurationError` if none can be
    made."""
    parent = _parent(settings)
    try:
        folder, held = _held_folder(parent)
        try:
            unlocked = (folder / _UNLOCKED).exists()
            (folder / "clip").write_bytes(b"x")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)
        free_gb = shutil.disk_usage(parent).free / 1e9
    except OSError as error:
        raise ConfigurationError(
            f"{parent} is not writable ({error.strerror}). Set WAN_SCRATCH_DIR."
        ) from error
    if free_gb < settings.scratch_min_gb:
        raise ConfigurationError(
            f"{parent} has {free_gb:.1f} GB free, and no job starts below "
            f"{settings.scratch_min_gb:g} GB. Make room, or set WAN_SCRATCH_DIR."
        )
    line = f"{parent}, {free_gb:.0f} GB free"
    if unlocked:
        return Warned(
            f"{line}; its file system has no locks, so leftovers of a killed worker stay for a "
            "day. Set WAN_SCRATCH_DIR to a disk of this machine"
        )
    return line


def _parent(settings: Settings) -> Path:
    chosen = settings.scratch_dir
    return Path(tempfile.gettempdir()) if chosen is None else chosen.expanduser()


def _require_room(parent: Path, min_gb: float) -> None:
    try:
        free_gb = shutil.disk_usage(parent).free / 1e9
    except OSError as error:
        log.error("WAN_SCRATCH_DIR cannot be used: %s", error)
        raise DiskFull from error
    if free_gb < min_gb:
        log.error("%s has %.1f GB free, a job needs %g: make room", parent, free_gb, min_gb)
        raise DiskFull


def _free_bytes(parent: Path) -> int:
    """Free bytes for the comparison with `_FULL_BYTES`; plenty if the system does not tell."""
    try:
        return shutil.disk_usage(parent).free
    except OSError:
        return _FULL_BYTES


def _is_abandoned(folder: Path) -> bool:
    """Whether no process holds the folder and it is old enough to have been locked since it was
    made. If locks do not work, or not across machines: whether nothing was written in it for a
    day."""
    try:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        facts = os.fstat(held)
        if facts.st_uid != os.geteuid() or time.time() - facts.st_ctime < _NEW_SECONDS:
            return False
        locked = _locks(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        told = locked and not (folder / _UNLOCKED).exists() and not paths.over_a_network(folder)
        return told or _age_seconds(folder) > _UNLOCKED_SECONDS
    except OSError:
        return False
    finally:
        os.close(held)


def _age_seconds(folder: Path) -> float:
    """Seconds since anything in it was written."""
    newest = max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
    return time.time() - newest
