"""The folder of a job: made when there is room for it, gone when the job has ended, whatever
happened."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wan_engine.errors import ConfigurationError, DiskFull
from wan_engine.settings import Settings

log = logging.getLogger(__name__)

_PREFIX = "wan-engine-job-"
_NEW_SECONDS = 10
_FULL_BYTES = 32 * 1024 * 1024  # with less than this left, what failed has failed for want of room


@contextmanager
def job_folder(settings: Settings) -> Iterator[Path]:
    """A new folder for one job, removed at its end. Raises `DiskFull` where there is no room, also
    instead of what a job raises once the disk has become full."""
    parent = _parent(settings)
    _require_room(parent, settings.scratch_min_gb)
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        log.error("no job folder in %s: %s", parent, error)
        raise DiskFull from error
    try:
        fcntl.flock(held, fcntl.LOCK_SH)  # tells `clear_abandoned` that somebody works here
        yield folder
    except Exception as error:
        if shutil.disk_usage(parent).free < _FULL_BYTES:
            log.error("%s is full: make room, or set WAN_SCRATCH_DIR (%s)", parent, error)
            raise DiskFull from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def clear_abandoned(settings: Settings) -> int:
    """Remove the job folders of this user's processes that were killed. Returns how many."""
    count = 0
    for folder in _parent(settings).glob(f"{_PREFIX}*"):
        if not folder.is_symlink() and folder.is_dir() and _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
            count += 1
    if count:
        log.info("removed %d job folders that a killed process left behind", count)
    return count


def check(settings: Settings) -> str:
    """One line: where job folders are made. Raises `ConfigurationError` when none can be."""
    parent = _parent(settings)
    try:
        with tempfile.TemporaryFile(dir=parent):
            free_gb = shutil.disk_usage(parent).free / 1e9
    except OSError as error:
        raise ConfigurationError(
            f"{parent} is not writable ({error.strerror}). Set WAN_SCRATCH_DIR."
        ) from error
    if free_gb < settings.scratch_min_gb:
        raise ConfigurationError(
            f"{parent} has {free_gb:.1f} GB free, and no job is begun below "
            f"{settings.scratch_min_gb:g} GB. Make room, or set WAN_SCRATCH_DIR."
        )
    return f"{parent}, {free_gb:.0f} GB free"


def _parent(settings: Settings) -> Path:
    return settings.scratch_dir or Path(tempfile.gettempdir())


def _require_room(parent: Path, min_gb: float) -> None:
    try:
        free_gb = shutil.disk_usage(parent).free / 1e9
    except OSError as error:
        log.error("WAN_SCRATCH_DIR cannot be used: %s", error)
        raise DiskFull from error
    if free_gb < min_gb:
        log.error("%s has %.1f GB free, a job needs %g: make room", parent, free_gb, min_gb)
        raise DiskFull


def _is_abandoned(folder: Path) -> bool:
    """Nobody holds it, and it is old enough to have been held since it was made."""
    try:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        facts = os.fstat(held)
        if facts.st_uid != os.geteuid() or time.time() - facts.st_ctime < _NEW_SECONDS:
            return False
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(held)
