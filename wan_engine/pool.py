"""The device and the model on it: which model, how it is run, and a leaner way when memory does not
suffice. It knows no request and no clip."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from PIL import Image

from wan_engine import weights
from wan_engine.catalog.with_settings import with_overrides
from wan_engine.control import Control
from wan_engine.errors import CompileFailed, OutOfMemory
from wan_engine.families import import_family, load_family
from wan_engine.plan import PlanLimits, rendered_sizes
from wan_engine.runtime import compile_cache, memory, recipes
from wan_engine.runtime.faults import is_out_of_memory
from wan_engine.runtime.startup import Startup
from wan_engine.schema import SegmentInput
from wan_engine.settings import Settings

if TYPE_CHECKING:
    from wan_engine.families.base import Family

log = logging.getLogger(__name__)
T = TypeVar("T")

_POLL_SECONDS = 0.1
_WARM_FRAMES = 5  # two latent frames: the fewest that go through attention over time


class _Warm(Exception):
    """Ends the warm-up after its first step."""


class Pool:
    """One model on one device, which one job has at a time.

    The constructor decides and reads nothing; raises `ConfigurationError` with what to do. `real`
    refuses to fall back to a toy. `recipe` is how the model is run; it becomes leaner, and stays
    so, when memory does not suffice.
    """

    def __init__(self, settings: Settings, *, real: bool) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self.gpu = gpu = recipes.detect(settings.device)
        self.located, self.model_reason = weights.select(
            settings, lambda spec: recipes.fits(spec, gpu), fallback=not real
        )
        self.spec = with_overrides(self.located.spec, settings)
        self.recipe, self.recipe_reason = recipes.choose(self.spec, gpu, settings)
        self.family: Family | None = None

    @property
    def device_beside(self) -> str:
        """Where small networks run that work beside the model."""
        return recipes.beside(self.spec, self.gpu, self.recipe)

    @property
    def spare_gb(self) -> float:
        return recipes.spare_gb(self.spec, self.gpu, self.recipe)

    # --- loading ---------------------------------------------------------------------------------

    def load(self) -> Family:
        """The model, its weights read once. Raises `OutOfMemory` when no recipe gets it onto the
        device."""
        if self.family is None:
            log.info("model %s (%s)", self.spec.name, self.model_reason)
            log.info("recipe %s (%s)", self.recipe, self.recipe_reason)
            self.family = self.run(self._load)
        return self.family

    def _load(self) -> Family:
        return load_family(self.spec, self.located.folder, self.recipe, self.located.loras)

    def import_libraries(self) -> None:
        """What `load` would import, which takes seconds."""
        import_family(self.spec)

    def warm_up(self, limits: PlanLimits, startup: Startup | None = None) -> None:
        """One step of the model at each size as a 16:9 picture is rendered, for CUDA loads a kernel
        when it is first used. Nothing on a CPU. Raises `OutOfMemory`."""
        kept = None
        if self.recipe.compiled:
            kept = compile_cache.Kept(compile_cache.file_for(self._settings, self.gpu, self.recipe))
            if startup:
                startup.done("compiled code")
        if self.recipe.device != "cpu":
            with self._lock:
                for size in rendered_sizes((1280, 720), self.spec, limits):
                    self.run(partial(self._one_step, size))
        if kept:
            kept.keep()

    def _one_step(self, size: tuple[int, int]) -> None:
        def on_step(count: int) -> None:
            if count > 0:
                raise _Warm

        asked = SegmentInput("", "", Image.new("RGB", size), *size, _WARM_FRAMES, seed=0)
        with suppress(_Warm):
            self.load().denoise(asked, on_step)

    # --- work on the device ----------------------------------------------------------------------

    @contextmanager
    def device(self, control: Control) -> Iterator[None]:
        """The device, for one job at a time; the wait for it can be cancelled."""
        while not self._lock.acquire(timeout=_POLL_SECONDS):
            control.checkpoint()
        control.has_device = True
        try:
            control.checkpoint()  # it may have come with the end of this process
            yield
        finally:
            control.has_device = False
            self._lock.release()

    def run(self, work: Callable[[], T], *, beside: Control | None = None) -> T:
        """What `work` gives; when memory does not suffice, once more with the next leaner recipe,
        and when its blocks cannot be compiled, once more with them as they are. Both are kept.

        `beside` is the job of work that does not hold the device. Raises `OutOfMemory` with what
        would fit, and `CompileFailed` where WAN_COMPILE is `required`.
        """
        try:
            return self._or_eager(work)
        except (OutOfMemory, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Not in the handler above: what it holds of the failed run keeps that run's memory.
        with self.device(beside) if beside else nullcontext():
            self._become_leaner()
        try:
            return self._or_eager(work)
        except (OutOfMemory, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(self._too_little_memory()) from None

    def _or_eager(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except CompileFailed as failed:
            if self._settings.compile == "required":
                log.error("compiling failed: %s", failed.why)
                raise
            why = failed.why
            log.warning("compiling failed: %s", why, exc_info=failed.__cause__)
        # Not in the handler above, as in `run`.
        if self.family is not None:  # else it could not even be asked for
            self.family.run_eagerly()
        self.recipe = replace(self.recipe, compiled=False)
        self.recipe_reason = f"{recipes.NOT_COMPILED}: {why}"
        log.warning("recipe %s (%s)", self.recipe, self.recipe_reason)
        return work()

    def _become_leaner(self) -> None:
        recipe = recipes.leaner(self.recipe)
        uncompiled = recipe is not None and self.recipe.compiled and not recipe.compiled
        if recipe is None or (uncompiled and self._settings.compile == "required"):
            raise OutOfMemory(self._too_little_memory())
        log.warning("out of memory with %s: from now on with %s", self.recipe, recipe)
        self.family = None
        memory.free_accelerator()
        self.recipe, self.recipe_reason = recipe, "the one before it ran out of memory"

    def _too_little_memory(self) -> str:
        fitting = recipes.smaller(self.spec, self.gpu)
        return f"The worker has too little GPU memory for {self.spec.name}: {fitting}"
