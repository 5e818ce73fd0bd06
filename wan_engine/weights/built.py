"""The tiny checkpoints, which are made where they are needed instead of fetched."""

from __future__ import annotations

import logging
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from wan_engine.settings import Settings

log = logging.getLogger(__name__)


def quiet_libraries(*, bars: bool) -> None:
    """Loading bars only where they are wanted and somebody watches; no warning about torchvision,
    which is missing here because nothing uses it."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    transformers_logging.set_verbosity_error()
    for logging_module in (diffusers_logging, transformers_logging):
        if bars and sys.stderr.isatty():
            logging_module.enable_progress_bar()
        else:
            logging_module.disable_progress_bar()


def built(name: str, settings: Settings) -> Path:
    """The folder of a tiny model or classifier, made if it is not there."""
    from builder import tiny

    return _in_cache(Path(f"tiny-{tiny.RECIPE}") / name, settings, partial(tiny.build, name))


def built_writer(settings: Settings) -> Path:
    """The folder of the tiny prompt writer, made if it is not there."""
    from builder import tiny_writer

    return _in_cache(Path(f"tiny-writer-{tiny_writer.RECIPE}"), settings, tiny_writer.build)


def _in_cache(name: Path, settings: Settings, build: Callable[[Path], Path]) -> Path:
    folder = settings.cache_dir.expanduser() / name
    if not folder.is_dir():  # else nothing is built, and the libraries are not imported for it
        quiet_libraries(bars=False)
    try:
        return build(folder)
    except OSError as error:
        fallback = _own_folder() / name
        log.info("%s is not writable (%s); using %s", settings.cache_dir, error, fallback)
        return build(fallback)


def _own_folder() -> Path:
    """This user's own in the folder that everybody may write: one that somebody else made, or may
    write, is not used."""
    folder = Path(tempfile.gettempdir()) / f"wan_engine-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    own = found.st_uid == os.getuid() and stat.S_ISDIR(found.st_mode)
    if own and not found.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp(prefix="wan_engine-"))
