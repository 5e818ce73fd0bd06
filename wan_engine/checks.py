"""What a job needs on this machine, looked at one by one: for `doctor` and for a worker's start."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from wan_engine import acceleration, weights
from wan_engine.catalog import ModelSpec
from wan_engine.engine import check_safety, with_overrides
from wan_engine.errors import ConfigurationError, EngineError
from wan_engine.media import ffmpeg
from wan_engine.prompts import open_expander
from wan_engine.settings import VERSION, Settings
from wan_engine.storage import open_storage

_SCRATCH_GB = 2.0  # a 15 s clip of 1080p texture is about 0.3 GB, twice while it is moved


@dataclass(frozen=True)
class Check:
    """One line of `doctor`: `found` says what is here, or what to do where `ok` is false."""

    what: str
    ok: bool
    found: str


def machine_checks(settings: Settings) -> Iterator[Check]:
    """Everything that a job needs on this machine, each looked at by itself."""
    yield Check("version", True, f"wan_engine {VERSION}, Python {platform.python_version()}")
    try:
        gpu = acceleration.detect(settings.device)
    except EngineError as error:
        yield Check("gpu", False, str(error))
        return
    yield Check("gpu", True, f"{gpu.name}, {gpu.total_gb:.0f} GB" if gpu else "none: CPU only")
    yield _checked("ffmpeg", lambda: ffmpeg.version())
    yield _checked("scratch", lambda: _scratch(settings))
    try:
        located, reason = weights.select(
            settings, lambda spec: acceleration.fits(spec, gpu), fallback=True
        )
    except EngineError as error:
        yield Check("model", False, str(error))
    else:
        texture = "; random weights, the picture is texture" if located.spec.built else ""
        yield Check("model", True, f"{located.spec.name} in {located.folder} ({reason}){texture}")
        yield _checked("settings", lambda: _overrides(located.spec, settings))
        recipe, why = acceleration.choose(located.spec, gpu, settings.device)
        yield Check("recipe", True, f"{recipe.dtype} on {recipe.device} ({why})")
    yield _checked("prompts", lambda: _prompts(settings, "cuda" if gpu else "cpu"))
    yield _checked("storage", lambda: open_storage(settings).check())
    yield _checked("safety", lambda: check_safety(settings))


def _checked(what: str, look: Callable[[], str]) -> Check:
    try:
        return Check(what, True, look())
    except EngineError as error:
        return Check(what, False, str(error))


def _prompts(settings: Settings, device: str) -> str:
    expander = open_expander(settings, device)
    return f"{expander.backend} ({expander.reason.partition(',')[0]})"


def _overrides(spec: ModelSpec, settings: Settings) -> str:
    spec = with_overrides(spec, settings)
    return f"{spec.steps} steps, guidance {spec.guidance_scale:g}, shift {spec.flow_shift:g}"


def _scratch(settings: Settings) -> str:
    folder = settings.scratch_dir or Path(tempfile.gettempdir())
    try:
        with tempfile.TemporaryFile(dir=folder):
            free_gb = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        raise ConfigurationError(
            f"{folder} is not writable ({error.strerror}). Set WAN_SCRATCH_DIR."
        ) from error
    if free_gb < _SCRATCH_GB:
        raise ConfigurationError(
            f"{folder} has {free_gb:.1f} GB free, a clip needs up to {_SCRATCH_GB:g} GB. "
            "Make room or set WAN_SCRATCH_DIR."
        )
    return f"{folder}, {free_gb:.0f} GB free"
