"""Keeps the code that torch compiled in a file for later starts. On a network volume, all workers
of an endpoint share it.

A file is for one version of torch, Triton and diffusers, one kind of GPU, one model and one recipe;
its content is trusted like the weights next to it.
"""

from __future__ import annotations

import hashlib
import logging
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from wan_engine.runtime.paths import beside
from wan_engine.runtime.recipes import Gpu, Recipe
from wan_engine.settings import VERSION, Settings

log = logging.getLogger(__name__)

_FOLDER = "compiled"
_PACKAGES = ("diffusers", "triton")
"""Packages besides torch whose version changes the compiled code."""


def folder(settings: Settings) -> Path:
    """The folder of compiled code: WAN_COMPILE_CACHE_DIR, else one next to the models, else one in
    the cache folder."""
    if settings.compile_cache_dir is not None:
        return settings.compile_cache_dir.expanduser()
    if settings.models_dir.is_dir():
        return settings.models_dir.parent / _FOLDER
    return settings.cache_dir.expanduser() / _FOLDER


def file_for(settings: Settings, gpu: Gpu | None, recipe: Recipe, model: str = "") -> Path:
    """The file for this torch, GPU, model and recipe. Models of different widths need different
    code, so they cannot share a file."""
    import torch

    packages = [_version(name) for name in _PACKAGES]
    words = (VERSION, torch.__version__, torch.version.cuda, packages, model)
    where = (gpu and (gpu.name, gpu.sm), recipe)
    digest = hashlib.sha256(repr((*words, *where)).encode()).hexdigest()[:16]
    return folder(settings) / f"torch-{torch.__version__.replace('+', '-')}-{digest}.bin"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # Triton, in a torch for CPUs
        return None


class Kept:
    """The compiled code of one process. The constructor loads it from `path`, `keep` writes it
    there. It never fails: without a file, blocks are compiled again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = self._load()

    @property
    def found(self) -> bool:
        """Whether an earlier start has written the file."""
        return bool(self._known)

    def _load(self) -> set[tuple[str, str]]:
        """Load the file and return the names of its artifacts."""
        import torch

        try:
            data = self._path.read_bytes()
        except OSError:
            return set()
        try:
            read = torch.compiler.load_cache_artifacts(data)  # None: torch has logged the reason
        except Exception:
            log.warning("the code in %s cannot be unpacked", self._path, exc_info=True)
            read = None
        if read is None:
            log.warning("%s cannot be used: compiling anew", self._path)
            return set()
        log.info("compiled code of an earlier start: %s, %d kB", self._path, len(data) // 1000)
        return _names(read)

    def keep(self) -> None:
        """Write the compiled code as a complete file or not at all. Does nothing if all of it came
        from the file."""
        import torch

        try:
            artifacts = torch.compiler.save_cache_artifacts()
        except Exception:
            log.warning("torch does not return its compiled code", exc_info=True)
            return
        if artifacts is None:  # nothing was compiled
            return
        data, told = artifacts
        if self._known >= _names(told):
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with beside(self._path) as half:
                half.write_bytes(data)
        except OSError as error:
            log.warning("compiled code is not kept in %s: %s", self._path, error)
            return
        log.info("compiled code is kept in %s, %d kB", self._path, len(data) // 1000)


def _names(told: Any) -> set[tuple[str, str]]:
    """The names of the artifacts that torch reports (`CacheInfo`), by kind."""
    artifacts: dict[str, list[str]] = getattr(told, "artifacts", {})
    return {(kind, key) for kind, keys in artifacts.items() for key in keys}
