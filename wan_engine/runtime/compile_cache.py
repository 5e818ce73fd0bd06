"""What torch compiled, kept in a file from one start to the next: on a network volume for all
workers of an endpoint.

A file is for one version of torch, one kind of GPU and one recipe; what is in it is trusted like
the weights beside it.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from wan_engine.runtime.paths import beside
from wan_engine.runtime.recipes import Gpu, Recipe
from wan_engine.settings import VERSION, Settings

log = logging.getLogger(__name__)

_FOLDER = "compiled"


def folder(settings: Settings) -> Path:
    """WAN_COMPILE_CACHE_DIR; else beside the models where their folder is, else the cache."""
    if settings.compile_cache_dir is not None:
        return settings.compile_cache_dir.expanduser()
    if settings.models_dir.is_dir():
        return settings.models_dir.parent / _FOLDER
    return settings.cache_dir.expanduser() / _FOLDER


def file_for(settings: Settings, gpu: Gpu | None, recipe: Recipe) -> Path:
    """The file of this torch, GPU and recipe."""
    import torch

    words = (VERSION, torch.__version__, torch.version.cuda, gpu and (gpu.name, gpu.sm), recipe)
    digest = hashlib.sha256(repr(words).encode()).hexdigest()[:16]
    return folder(settings) / f"torch-{torch.__version__.replace('+', '-')}-{digest}.bin"


class Kept:
    """The artifacts of one process: taken from `path` at once, put there by `keep`. Never fails:
    without them, blocks are compiled anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found = self._load()

    def _load(self) -> bool:
        import torch

        try:
            data = self._path.read_bytes()
        except OSError:
            return False
        try:
            read = torch.compiler.load_cache_artifacts(data) is not None  # else it has logged why
        except Exception:
            log.warning("what torch makes of %s has no place", self._path, exc_info=True)
            read = False
        if not read:
            log.warning("%s cannot be used: compiling anew", self._path)
            return False
        log.info("compiled code of an earlier start: %s, %d kB", self._path, len(data) // 1000)
        return True

    def keep(self) -> None:
        """Write what was compiled, whole or not at all, unless it came from there."""
        if self.found:
            return
        import torch

        try:
            artifacts = torch.compiler.save_cache_artifacts()
        except Exception:
            log.warning("torch does not give what it compiled", exc_info=True)
            return
        if artifacts is None:  # nothing was compiled
            return
        data = artifacts[0]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with beside(self._path) as half:
                half.write_bytes(data)
        except OSError as error:
            log.warning("compiled code is not kept in %s: %s", self._path, error)
            return
        log.info("compiled code is kept in %s, %d kB", self._path, len(data) // 1000)
