"""Manages the device and its models: which are configured and loaded, how each runs, and a leaner
recipe if memory runs out. It knows nothing about requests and clips.

    on disk ── load ──> on the device ── put away ──> in host memory, where that has room
       ^                     ^                            │      └──> else dropped
       │                     └────── brought back ────────┘             │
       └────────────────────────────────────────────────────────────────┘
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

from wan_engine import weights
from wan_engine.catalog import ModelSpec
from wan_engine.catalog.with_settings import with_settings
from wan_engine.control import Control
from wan_engine.errors import CompileFailed, InvalidRequest, LoraRefused, NotServed, OutOfMemory
from wan_engine.families import import_family, load_family
from wan_engine.plan import PlanLimits, rendered_sizes
from wan_engine.runtime import compile_cache, memory, recipes
from wan_engine.runtime.faults import is_out_of_memory
from wan_engine.runtime.startup import Startup
from wan_engine.schema import OnBytes, Task
from wan_engine.settings import Settings
from wan_engine.weights.lora_folder import ChosenLora

if TYPE_CHECKING:
    from wan_engine.families.base import Family, Loaded, TakesLoras

log = logging.getLogger(__name__)
T = TypeVar("T")

_POLL_SECONDS = 0.1


class Model:
    """A configured row, its files and its recipe.

    `family` has the weights if they are loaded; `away` means that they wait in host memory.
    `recipe` becomes leaner for good if memory runs out. `alone`: the model was found to need the
    device for itself.
    """

    def __init__(
        self, located: weights.Located, reason: str, gpu: recipes.Gpu | None, settings: Settings
    ) -> None:
        self.located, self.reason = located, reason
        self.spec = with_settings(located.spec, settings)
        self.recipe, self.recipe_reason = recipes.choose(self.spec, gpu, settings)
        self.family: Loaded | None = None
        self.away = False
        self.alone = False

    @property
    def on_device(self) -> bool:
        return self.family is not None and not self.away

    @property
    def loras(self) -> tuple[ChosenLora, ...] | None:
        """The LoRA files of requests in the weights now. None after a change that failed
        halfway."""
        found: tuple[ChosenLora, ...] | None = getattr(self.family, "loras", ())
        return found

    def is_ready(self, loras: Sequence[ChosenLora]) -> bool:
        """Whether the model is on the device with exactly these LoRA files of requests."""
        return self.on_device and self.loras == tuple(loras)

    @property
    def kept_gb(self) -> float:
        """Device memory in GB that the model keeps between two clips."""
        return recipes.kept_gb(self.spec, self.recipe)

    @property
    def needs_gb(self) -> float:
        """Device memory in GB that the model needs while it makes a clip."""
        return recipes.needs_gb(self.spec, self.recipe)


class _Leanest(OutOfMemory):
    """Raised if a model has no leaner recipe. `run` of the model beside it does not retry."""


class Pool:
    """The models of the configured tasks on one device. One job at a time holds the device.

    The constructor makes every choice and loads nothing; it raises `ConfigurationError` with what
    to do. `real` refuses to fall back to a test model. As many models stay on the device as fit by
    the recipes' sums. The least recently used one is put away first.
    """

    def __init__(self, settings: Settings, *, real: bool) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self.gpu = gpu = recipes.detect(settings.device)
        found = weights.configured(
            settings, lambda spec: recipes.fits(spec, gpu), fallback=not real
        )
        self.models: dict[Task, Model] = {
            task: Model(located, reason, gpu, settings) for task, (located, reason) in found.items()
        }
        self._limit_gb = recipes.pool_gb(gpu, settings)
        self._used: list[Model] = []  # most recently used last

    @property
    def main(self) -> Model:
        """The model of the first task: image-to-video, if it is configured."""
        return next(iter(self.models.values()))

    @property
    def rows(self) -> Mapping[Task, ModelSpec]:
        """The row of each task, with the settings applied."""
        return {task: model.spec for task, model in self.models.items()}

    @property
    def device_beside(self) -> str:
        """The device for small networks that run next to the models."""
        places = (recipes.beside(one.spec, self.gpu, one.recipe) for one in self.models.values())
        return next((place for place in places if place == "cpu"), self.main.recipe.device)

    @property
    def spare_gb(self) -> float:
        """Device memory in GB that the largest model leaves free."""
        models = self.models.values()
        return min(recipes.spare_gb(one.spec, self.gpu, one.recipe) for one in models)

    # --- loading ---------------------------------------------------------------------------------

    def load(
        self,
        model: Model,
        control: Control | None = None,
        loras: Sequence[ChosenLora] = (),
    ) -> Family:
        """Load a model's weights onto the device, with exactly these LoRA files of a request. Other
        models are put away if it needs their room.

        Hold the device once jobs have begun. A load is a stage of `control`, in megabytes, and
        stops if the job must stop. Raises `OutOfMemory` if no recipe gets the model onto the
        device, and `InvalidRequest` for LoRA files that give infinite numbers.
        """
        if not model.is_ready(loras):
            self.run(model, lambda: self._load(model, control, loras))
        self._use(model)
        assert model.family is not None
        return cast("Family", model.family)

    def load_all(self) -> Family:
        """Load as many models as fit together, at least the main one, and return that one."""
        family = self.load(self.main)
        for model in self.models.values():
            if not model.on_device and self._fits(model):
                self.load(model)
        return family

    def _use(self, model: Model) -> None:
        self._used = [*(one for one in self._used if one is not model), model]

    def _load(self, model: Model, control: Control | None, loras: Sequence[ChosenLora]) -> None:
        def on_bytes(done: int, total: int) -> None:
            if control is not None:
                control.progress("load", done // 10**6, total // 10**6)

        if not model.on_device:
            self._bring(model, on_bytes)
        if model.loras != tuple(loras):
            self._set_loras(model, loras, on_bytes)

    def _set_loras(self, model: Model, loras: Sequence[ChosenLora], on_bytes: OnBytes) -> None:
        family = cast("TakesLoras", model.family)
        if not hasattr(family, "set_loras"):  # from another package
            raise NotServed(
                f'field "loras" cannot be used: the model {model.spec.name} takes no LoRA'
            )
        try:
            family.set_loras(loras, on_bytes)
        except LoraRefused as error:
            raise InvalidRequest(f'field "loras" cannot be used: {error.why}') from error
        finally:
            if family.loras is None:
                log.error("model %s is dropped: its LoRA files are half in", model.spec.name)
                model.family = None
                memory.free_accelerator()

    def _bring(self, model: Model, on_bytes: OnBytes) -> None:
        self._make_room(model)
        if model.family is not None:
            log.info("model %s is moved back from host memory", model.spec.name)
            model.family.move(model.recipe.device)
            model.away = False
            return
        log.info("model %s (%s)", model.spec.name, model.reason)
        log.info("recipe %s (%s)", model.recipe, model.recipe_reason)

        located = model.located
        try:
            model.family = load_family(
                model.spec, located.folder, model.recipe, located.loras, on_bytes
            )
        finally:
            if model.family is None:
                memory.free_accelerator()
        ran: recipes.Recipe = getattr(model.family, "recipe", model.recipe)
        able = replace(model.recipe, float8=ran.float8, attention=ran.attention)
        if able != model.recipe:
            model.recipe, model.recipe_reason = (
                able,
                "the accuracy test of 8 bits failed on this device",
            )

    def import_libraries(self) -> None:
        """Import the libraries that `load` needs, which takes seconds."""
        for model in self.models.values():
            import_family(model.spec)

    def warm_up(self, limits: PlanLimits, startup: Startup | None = None) -> None:
        """Run each loaded model briefly at each size of a 16:9 picture, because CUDA loads a kernel
        at its first use. Does nothing on a CPU. Raises `OutOfMemory`."""
        kept = None
        if self.main.recipe.compiled:
            names = ", ".join(model.spec.name for model in self.models.values())
            recipe = self.main.recipe
            file = compile_cache.file_for(self._settings, self.gpu, recipe, names)
            kept = compile_cache.Kept(file)
            if startup:
                startup.done("compiled code")
        for model in self.models.values():
            if model.recipe.device != "cpu" and (model.on_device or model is self.main):
                with self._lock:
                    for size in rendered_sizes((1280, 720), model.spec, limits):
                        self.run(model, partial(self._warm_up, model, size))
        if kept:
            kept.keep()

    def _warm_up(self, model: Model, size: tuple[int, int]) -> None:
        self.load(model).warm_up(*size)

    # --- unloading -------------------------------------------------------------------------------

    def _fits(self, model: Model) -> bool:
        """Whether the model and those on the device now can make clips next to each other."""
        others = self._others(model)
        if others and (model.alone or any(one.alone for one in others)):
            return False
        together = [model, *others]
        working_gb = max(one.needs_gb - one.kept_gb for one in together)
        return sum(one.kept_gb for one in together) + working_gb <= self._limit_gb

    def _on_device(self) -> list[Model]:
        """The models on the device, least recently used first."""
        waiting = [one for one in self.models.values() if one not in self._used]
        return [one for one in (*waiting, *self._used) if one.on_device]

    def _make_room(self, model: Model) -> None:
        while not self._fits(model) and (others := self._others(model)):
            self._put_away(others[0], f"{model.spec.name} needs the room")

    def _others(self, model: Model) -> list[Model]:
        return [one for one in self._on_device() if one is not model]

    def _put_away(self, model: Model, why: str) -> None:
        assert model.family is not None
        if recipes.can_wait_in_host_memory(model.spec, model.recipe):
            log.info("model %s is moved to host memory: %s", model.spec.name, why)
            model.family.move("cpu")
            model.away = True
        else:
            log.info(
                "model %s is unloaded, and loaded again for its next job: %s", model.spec.name, why
            )
            model.family = None
        memory.free_accelerator()

    # --- runs on the device ----------------------------------------------------------------------

    @contextmanager
    def device(self, control: Control) -> Iterator[None]:
        """Hold the device. One job at a time has it, and the wait for it can be cancelled."""
        while not self._lock.acquire(timeout=_POLL_SECONDS):
            control.checkpoint()
        control.has_device = True
        try:
            control.checkpoint()  # the device may have become free because this process is ending
            yield
        finally:
            control.has_device = False
            self._lock.release()

    def run(self, model: Model, work: Callable[[], T], *, beside: Control | None = None) -> T:
        """Return the result of `work` with `model` and the models that it loads.

        If memory runs out, the work runs again: first without the other models on the device, then
        with the next leaner recipe of the model at work. If blocks cannot be compiled, it runs
        again without compilation. These changes stay. `beside` is the job of work that does not
        hold the device.

        Raises `OutOfMemory` with a model that would fit, and `CompileFailed` if WAN_COMPILE is
        `required`.
        """
        leaner: list[Model] = []
        while True:
            try:
                return self._or_eager(model, work, beside)
            except (OutOfMemory, RuntimeError) as error:
                if isinstance(error, _Leanest) or not is_out_of_memory(error):
                    raise
                failed = self._at_work(model, beside)
            # Outside the handler above, because the exception keeps the memory of the failed run.
            if failed in leaner:
                raise _Leanest(self._too_little_memory(failed)) from None
            with self.device(beside) if beside else nullcontext():
                if others := self._others(failed):
                    failed.alone = True
                    for other in others:
                        self._put_away(other, f"{failed.spec.name} ran out of memory beside it")
                else:
                    leaner.append(failed)
                    self._become_leaner(failed)

    def _or_eager(self, model: Model, work: Callable[[], T], beside: Control | None) -> T:
        eager: list[Model] = []
        while True:
            if beside is None:
                self._use(model)
            try:
                return work()
            except CompileFailed as error:
                failed, why = self._at_work(model, beside), error.why
                if self._settings.compile == "required" or failed in eager:
                    log.error("compiling failed: %s", why)
                    raise
                log.warning("compiling failed: %s", why, exc_info=error.__cause__)
            # Outside the handler above, as in `run`.
            eager.append(failed)
            self._become_eager(failed, why)

    def _at_work(self, model: Model, beside: Control | None) -> Model:
        """Return the model that was loaded last, because a clip may use several models."""
        return model if beside else self._used[-1]

    def _become_eager(self, model: Model, why: str) -> None:
        if model.family is not None:  # without weights there is nothing to change
            model.family.run_eagerly()
        model.recipe = replace(model.recipe, compiled=False)
        model.recipe_reason = f"{recipes.NOT_COMPILED}: {why}"
        log.warning("recipe %s (%s)", model.recipe, model.recipe_reason)

    def _become_leaner(self, model: Model) -> None:
        recipe = recipes.leaner(model.recipe)
        uncompiled = recipe is not None and model.recipe.compiled and not recipe.compiled
        if recipe is None or (uncompiled and self._settings.compile == "required"):
            raise _Leanest(self._too_little_memory(model))
        log.warning("out of memory with %s: from now on with %s", model.recipe, recipe)
        model.family, model.away = None, False
        memory.free_accelerator()
        model.recipe, model.recipe_reason = recipe, "the one before it ran out of memory"

    def _too_little_memory(self, model: Model) -> str:
        fitting = recipes.smaller(model.spec, self.gpu)
        return f"The worker has too little GPU memory for {model.spec.name}: {fitting}"
