"""Checks what a job needs on this machine, before any weights are loaded."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from wan_engine import weights
from wan_engine.catalog import ModelSpec
from wan_engine.catalog.with_settings import with_settings
from wan_engine.engine import Engine
from wan_engine.errors import ConfigurationError, EngineError, Warned
from wan_engine.media import ffmpeg, retime
from wan_engine.prompts import open_expander
from wan_engine.runtime import paths, recipes, scratch
from wan_engine.runtime.startup import Startup
from wan_engine.safety import open_safety
from wan_engine.schema import Task
from wan_engine.settings import VERSION, Settings
from wan_engine.settings.environment import unknown_variables
from wan_engine.storage import open_storage, uses_bucket
from wan_engine.weights import Located
from wan_engine.weights.lora_folder import LoraFolder

log = logging.getLogger(__name__)
Level = Literal["ok", "warn", "fail"]
T = TypeVar("T")
Configured = dict[Task, tuple[Located, str]]

_LORAS_SHOWN = 20


@dataclass(frozen=True)
class Check:
    """One line of `doctor`. `found` says what is here, or what to do if `level` is "fail". At
    "warn", jobs run, but with limits."""

    what: str
    level: Level
    found: str

    @property
    def ok(self) -> bool:
        """Whether jobs can run."""
        return self.level != "fail"


def machine_checks(
    settings: Settings, *, worker: bool = False, stores: bool = True
) -> Iterator[Check]:
    """Check everything that a job needs on this machine, one check per line.

    `worker` adds the checks of the Runpod loop, which accepts no test model and no local folder.
    Without `stores`, the storage is not checked, because clips do not go there.
    """
    yield Check("version", "ok", f"wan_engine {VERSION}, Python {platform.python_version()}")
    yield _checked("variables", _variables)
    gpu, row = _found("gpu", lambda: recipes.detect(settings.device), lambda gpu: _gpu(gpu, worker))
    yield row
    seen = row.ok  # otherwise it is unknown what fits
    yield _checked("ffmpeg", lambda: ffmpeg.version())
    yield _checked("scratch", lambda: scratch.check(settings))
    yield _checked("folders", lambda: _folders(settings))
    found, row = _locate(settings, gpu, worker, seen)
    yield row
    several = len(found or {}) > 1
    for task, (located, reason) in (found or {}).items():
        of = f" ({task})" if several else ""
        if several:
            yield Check(f"model{of}", "ok", f"{located.spec.name} ({reason})")
        applied = _checked(f"settings{of}", partial(_applied, located.spec, settings))
        yield applied
        for lora in located.loras:
            yield _checked(f"lora{of}", partial(_lora, located, lora))
        if seen:
            yield _checked(f"memory{of}", partial(_memory, located.spec, gpu))
        if seen and applied.ok:
            yield _checked(f"recipe{of}", partial(_recipe, located.spec, gpu, settings))
    if several and seen:
        yield _checked("pool", partial(_pool, found or {}, gpu, settings))
    if settings.lora_dir is not None:
        yield _checked("loras", lambda: _loras(settings))
    yield _checked("fps", lambda: _fps(settings))
    yield _checked(
        "upscale", lambda: "upscaling by {} ({})".format(*weights.choose_upscaling(settings))
    )
    yield _checked("prompts", lambda: _prompts(settings, "cuda" if gpu else "cpu"))
    if stores:
        yield _checked("storage", lambda: _storage(settings, worker))
    yield _checked("safety", lambda: _safety(settings, worker))


def require(settings: Settings, *, worker: bool = False, stores: bool = True) -> None:
    """Raise `ConfigurationError` with all failed checks, and log the warnings."""
    rows = list(machine_checks(settings, worker=worker, stores=stores))
    for row in rows:
        if row.level == "warn":
            log.warning("%s: %s", row.what, row.found)
    failed = [f"{row.what}: {row.found}" for row in rows if not row.ok]
    if len(failed) == 1:
        raise ConfigurationError(failed[0])
    if failed:
        listed = "".join(f"\n- {sentence}" for sentence in failed)
        raise ConfigurationError(f"{len(failed)} things are missing or wrong:{listed}")


def start_checks(settings: Settings, startup: Startup, *, worker: bool = False) -> list[Check]:
    """Log the start of a worker: one line per stage of `startup`, and one for all of them."""
    try:
        engine = Engine(settings, serverless=worker)
        startup.done("choice")
        engine.start(startup)
    except EngineError as error:
        return [Check("start", "fail", str(error))]
    stages = startup.stage_seconds.items()
    lines = [Check(f"start: {stage}", "ok", f"{took:.2f} s") for stage, took in stages]
    return [*lines, Check("start", "ok", f"{startup.seconds:.2f} s in total")]


def _checked(what: str, look: Callable[[], str]) -> Check:
    """A line with the result of `look`, at "warn" for a `Warned`, or with the error that it
    raises."""
    return _found(what, look, str)[1]


def _found(what: str, find: Callable[[], T], tell: Callable[[T], str]) -> tuple[T | None, Check]:
    """The result of `find`, or None if it raises, with a line about it."""
    try:
        found = find()
        line = found if isinstance(found, Warned) else tell(found)
    except EngineError as error:
        return None, Check(what, "fail", str(error))
    except paths.PATH_ERRORS as error:  # for a path in a setting
        return None, Check(what, "fail", paths.sentence(error))
    return found, Check(what, "warn" if isinstance(line, Warned) else "ok", str(line))


# --- the checks, in order -------------------------------------------------------------------------


def _variables() -> str:
    unknown = unknown_variables()
    if not unknown:
        return "all WAN_ and BUCKET_ variables are known"
    said = [
        f"{name} is not known" + (f", did you mean {nearest}?" if nearest else "")
        for name, nearest in unknown.items()
    ]
    return Warned("; ".join(said))


def _gpu(gpu: recipes.Gpu | None, worker: bool) -> str:
    if gpu is None:
        return Warned("none: this worker runs on the CPU") if worker else "none: CPU only"
    return f"{gpu.name}, {gpu.total_gb:.0f} GB"


def _folders(settings: Settings) -> str:
    """Optional folders. A missing one is a warning, unless it is clearly a mistake."""
    models, cache = settings.models_dir, settings.cache_dir.expanduser()
    if models.exists() and not models.is_dir():
        raise ConfigurationError(f"WAN_MODELS_DIR names {models}, which is a file, not a folder")
    said = []
    if not models.exists() and models != Settings.model_fields["models_dir"].default:
        said.append(f"WAN_MODELS_DIR names {models}, which does not exist")
    if (no := _unwritable(cache)) is not None:
        said.append(f"WAN_CACHE_DIR: {no}: each process creates its contents again")
    compiled = settings.compile_cache_dir
    if compiled is not None and (no := _unwritable(compiled.expanduser())) is not None:
        said.append(f"WAN_COMPILE_CACHE_DIR: {no}: each start compiles again")
    if said:
        return Warned("; ".join(said))
    return (
        f"{f'models in {models}' if models.is_dir() else 'no folder of models'}, cache in {cache}"
    )


def _unwritable(folder: Path) -> str | None:
    """The reason why `folder` cannot be written, or None. Creates the folder."""
    try:
        with paths.refusing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        paths.try_folder(folder)
    except paths.PathRefused as refused:
        return str(refused)
    return None


def _locate(
    settings: Settings, gpu: recipes.Gpu | None, worker: bool, seen: bool
) -> tuple[Configured | None, Check]:
    """The models by task, or None, with a line about the first."""

    def fits(spec: ModelSpec) -> bool:
        return recipes.fits(spec, gpu) if seen else not spec.is_toy

    def tell(found: Configured) -> str:
        located, reason = next(iter(found.values()))
        line = f"{located.spec.name} in {located.folder} ({reason})"
        caveats = [one.spec.caveat for one, _ in found.values() if one.spec.caveat]
        return Warned("; ".join((line, *caveats))) if caveats else line

    return _found("model", lambda: weights.configured(settings, fits, fallback=not worker), tell)


def _pool(found: Configured, gpu: recipes.Gpu | None, settings: Settings) -> str:
    """A line about how many of the models stay on the device together."""
    limit_gb = recipes.pool_gb(gpu, settings)
    kept_gb, most_gb = 0.0, 0.0
    for located, _ in found.values():
        spec = with_settings(located.spec, settings)
        recipe, _ = recipes.choose(spec, gpu, settings)
        kept = recipes.kept_gb(spec, recipe)
        kept_gb += kept
        most_gb = max(most_gb, recipes.needs_gb(spec, recipe) - kept)
    if kept_gb + most_gb <= limit_gb:
        return f"all {len(found)} models stay loaded: {kept_gb + most_gb:.0f} of {limit_gb:.0f} GB"
    return Warned(
        f"not all of the {len(found)} models fit together: {kept_gb + most_gb:.0f} GB, and "
        f"{limit_gb:.0f} are here. The least recently used one is unloaded, and loaded again "
        "when a job needs it"
    )


def _applied(spec: ModelSpec, settings: Settings) -> str:
    spec = with_settings(spec, settings)
    return f"{spec.steps} steps, guidance {spec.guidance_scale:g}, shift {spec.flow_shift:g}"


def _memory(spec: ModelSpec, gpu: recipes.Gpu | None) -> str:
    if gpu is None:
        return "host memory, because there is no GPU"
    if not recipes.fits(spec, gpu):
        raise ConfigurationError(
            f"{gpu.name} has {gpu.total_gb:.0f} GB (sm{gpu.capability[0]}{gpu.capability[1]}); "
            f"{spec.name} needs {recipes.least_gb(spec):.0f} GB and bfloat16 (sm80 or newer): "
            f"{recipes.smaller(spec, gpu)}"
        )
    least_gb = recipes.least_gb(spec)
    return f"{gpu.usable_gb:.0f} GB free, {spec.name} needs {least_gb:.0f} GB or more"


def _lora(located: weights.Located, lora: weights.LocatedLora) -> str:
    from wan_engine.families.lora import describe

    return describe(located.folder, lora)


def _loras(settings: Settings) -> str:
    names = list(LoraFolder(settings).found())
    if not names:
        return Warned("WAN_LORA_DIR has no LoRA files: requests can name none")
    shown = ", ".join(names[:_LORAS_SHOWN]) + (", ..." if len(names) > _LORAS_SHOWN else "")
    return f"requests may name {len(names)}: {shown}"


def _recipe(spec: ModelSpec, gpu: recipes.Gpu | None, settings: Settings) -> str:
    recipe, why = recipes.choose(with_settings(spec, settings), gpu, settings)
    line = f"{recipe} ({why})"
    return Warned(line) if isinstance(why, Warned) else line


def _fps(settings: Settings) -> str:
    how, why = retime.choose(settings)
    line = f"interpolation by {how} ({why})"
    fallen_back = how == "blend" and settings.interpolation == "auto" and settings.fps != "native"
    return Warned(f"{line}: moving edges are double") if fallen_back else line


def _prompts(settings: Settings, device: str) -> str:
    expander = open_expander(settings, device)
    line = f"{expander.backend} ({expander.reason})"
    fallen_back = expander.backend == "template" and settings.prompt_backend == "auto"
    return Warned(f"{line}: fixed phrases are added") if fallen_back else line


def _storage(settings: Settings, worker: bool) -> str:
    line = open_storage(settings, lasting=worker).check()
    if worker and not uses_bucket(settings):
        return Warned(f"{line}, which are lost with this worker, unless the folder is on a volume")
    return line


def _safety(settings: Settings, worker: bool) -> str:
    checker = open_safety(settings, required=worker)
    return Warned(checker.describe()) if checker.warnings() else checker.describe()
