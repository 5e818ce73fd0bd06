"""What a job needs on this machine, looked at one by one: for `doctor` and for a worker's start."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from wan_engine import acceleration, scratch, weights
from wan_engine.catalog import ModelSpec
from wan_engine.engine import Engine
from wan_engine.errors import ConfigurationError, EngineError
from wan_engine.media import ffmpeg, retime, upscale
from wan_engine.overrides import with_overrides
from wan_engine.prompts import open_expander
from wan_engine.safety import open_safety
from wan_engine.settings import VERSION, Settings
from wan_engine.startup import Startup
from wan_engine.storage import open_storage


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
    yield _checked("scratch", lambda: scratch.check(settings))
    try:
        located, reason = weights.select(
            settings, lambda spec: acceleration.fits(spec, gpu), fallback=True
        )
    except EngineError as error:
        yield Check("model", False, str(error))
    else:
        caveat = f"; {located.spec.caveat}" if located.spec.caveat else ""
        yield Check("model", True, f"{located.spec.name} in {located.folder} ({reason}){caveat}")
        overrides = _checked("settings", lambda: _overrides(located.spec, settings))
        yield overrides
        for lora in located.loras:
            yield _checked("lora", partial(_lora, located, lora))
        yield _checked("memory", lambda: _memory(located.spec, gpu))
        if overrides.ok:
            yield _checked("recipe", lambda: _recipe(located.spec, gpu, settings))
    yield _checked("fps", lambda: "frames between by {} ({})".format(*retime.choose(settings)))
    yield _checked(
        "upscale", lambda: "larger pictures by {} ({})".format(*upscale.choose(settings))
    )
    yield _checked("prompts", lambda: _prompts(settings, "cuda" if gpu else "cpu"))
    yield _checked("storage", lambda: open_storage(settings).check())
    yield _checked("safety", lambda: open_safety(settings, required=False).describe())


def start_checks(settings: Settings, startup: Startup) -> list[Check]:
    """The start of a worker, done: a line for each stage of `startup`, and one for all of them."""
    try:
        engine = Engine(settings)
        startup.done("choice")
        engine.start(startup)
    except EngineError as error:
        return [Check("start", False, str(error))]
    stages = startup.stage_seconds.items()
    lines = [Check(f"start: {stage}", True, f"{took:.2f} s") for stage, took in stages]
    return [*lines, Check("start", True, f"{startup.seconds:.2f} s in all")]


def _checked(what: str, look: Callable[[], str]) -> Check:
    try:
        return Check(what, True, look())
    except EngineError as error:
        return Check(what, False, str(error))


def _shown(choice: tuple[str, str]) -> str:
    name, reason = choice
    return f"{name} ({reason})"


def _memory(spec: ModelSpec, gpu: acceleration.Gpu | None) -> str:
    if gpu is None:
        return "of the host: no GPU is used"
    if not acceleration.fits(spec, gpu):
        raise ConfigurationError(
            f"{gpu.name} has {gpu.total_gb:.0f} GB (sm{gpu.capability[0]}{gpu.capability[1]}); "
            f"{spec.name} needs {acceleration.least_gb(spec):.0f} GB and bfloat16 (sm80 or newer): "
            f"{acceleration.smaller(spec, gpu)}"
        )
    least_gb = acceleration.least_gb(spec)
    return f"{gpu.usable_gb:.0f} GB free, {spec.name} needs {least_gb:.0f} GB or more"


def _lora(located: weights.Located, lora: weights.LoraWeights) -> str:
    from wan_engine.families.lora import describe

    return describe(located.folder, lora)


def _recipe(spec: ModelSpec, gpu: acceleration.Gpu | None, settings: Settings) -> str:
    recipe, why = acceleration.choose(with_overrides(spec, settings), gpu, settings)
    return f"{recipe} ({why})"


def _prompts(settings: Settings, device: str) -> str:
    expander = open_expander(settings, device)
    return f"{expander.backend} ({expander.reason.partition(',')[0]})"


def _overrides(spec: ModelSpec, settings: Settings) -> str:
    spec = with_overrides(spec, settings)
    return f"{spec.steps} steps, guidance {spec.guidance_scale:g}, shift {spec.flow_shift:g}"
