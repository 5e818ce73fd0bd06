"""Finds the folder for the tiny checkpoints: WAN_CACHE_DIR, or a folder of this user if that is not
writable."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from wan_engine.runtime.logs import quiet_libraries
from wan_engine.settings import Settings
from wan_engine.toy import checkpoints

log = logging.getLogger(__name__)


def cached(name: str, settings: Settings) -> Path:
    """The folder of a tiny model, classifier or prompt writer. Builds it if it does not exist."""
    place = checkpoints.place_in_cache(name)
    folder = settings.cache_dir.expanduser() / place
    if not folder.is_dir():  # if it exists, the libraries need not be imported
        quiet_libraries(bars=False)
    try:
        return checkpoints.build(name, folder)
    except OSError as error:
        fallback = own_folder() / place
        log.info("%s is not writable (%s); using %s", settings.cache_dir, error, fallback)
        return checkpoints.build(name, fallback)


def own_folder() -> Path:
    """This user's own folder in the system's temporary folder. A folder that another user owns or
    may write is not used."""
    folder = Path(tempfile.gettempdir()) / f"wan_engine-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    own = found.st_uid == os.getuid() and stat.S_ISDIR(found.st_mode)
    if own and not found.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp(prefix="wan_engine-"))
