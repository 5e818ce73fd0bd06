"""The straight line from a request to a stored mp4: prepare, plan, render, publish. Nothing
else."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from PIL import Image

from wan_engine import weights
from wan_engine.catalog.with_settings import negative_prompt, with_overrides
from wan_engine.control import Control
from wan_engine.errors import CompileFailed, ContentPolicy, OutOfMemory
from wan_engine.families import import_family, load_family
from wan_engine.media.audio import AudioLimits, open_audio
from wan_engine.media.fetch import FetchLimits, fetch
from wan_engine.media.framing import cropped, subject
from wan_engine.media.images import ImageLimits, fit, open_image
from wan_engine.media.joins import Joined
from wan_engine.media.postprocess import Finish
from wan_engine.media.video import EncodeOptions, Frames, encode
from wan_engine.outline import outline
from wan_engine.plan import PlanLimits, make_plan
from wan_engine.pricing import cost
from wan_engine.prompts import Expansion, open_expander
from wan_engine.prompts.token_limit import TokenLimit
from wan_engine.runtime import compile_cache, estimates, memory, recipes
from wan_engine.runtime.faults import is_out_of_memory
from wan_engine.runtime.scratch import clear_abandoned, job_folder
from wan_engine.runtime.startup import Startup
from wan_engine.runtime.time_limits import set_limits
from wan_engine.safety import open_safety
from wan_engine.schema import (
    SEED_MAX,
    Carry,
    EncodedVideo,
    Media,
    Plan,
    Script,
    ScriptShot,
    SegmentInput,
    Size,
    VideoRequest,
    VideoResult,
)
from wan_engine.settings import VERSION, Settings
from wan_engine.storage import Starts, Storage, open_storage

if TYPE_CHECKING:
    from wan_engine.families.base import Family

log = logging.getLogger(__name__)
T = TypeVar("T")

_POLL_SECONDS = 0.1
_WARM_FRAMES = 5  # two latent frames: the fewest that go through attention over time
_SHORT_AUDIO_SECONDS = 3  # the hosted page's minimum; shorter sound is taken with a warning


class _Warm(Exception):
    """Ends the warm-up after its first step."""


class Engine:
    """One model on one device. Jobs may come from several threads; the device works on one at a
    time.

    The constructor decides everything and raises `ConfigurationError` with what to do; `load` reads
    the weights. `serverless` is the Runpod loop, where nothing may be pretended: no model or no
    bucket is an error there.
    """

    def __init__(self, settings: Settings | None = None, *, serverless: bool = False) -> None:
        self.settings = settings = settings or Settings.load()
        self.storage = open_storage(settings, lasting=serverless)
        self.gpu = gpu = recipes.detect(settings.device)
        self.located, self.model_reason = weights.select(
            settings, lambda spec: recipes.fits(spec, gpu), fallback=not serverless
        )
        self.spec = with_overrides(self.located.spec, settings)
        self.recipe, self.recipe_reason = recipes.choose(self.spec, gpu, settings)
        device = recipes.beside(self.spec, gpu, self.recipe)
        self.safety = open_safety(settings, required=serverless, device=device)
        self.finish = Finish(settings, self.recipe.device)
        self._starts = (
            Starts(settings.spool_dir, keep_days=settings.keep_days) if settings.spool_dir else None
        )
        self._device = threading.Lock()
        self._family: Family | None = None
        spare_gb = recipes.spare_gb(self.spec, gpu, self.recipe)
        self.token_limit = TokenLimit(self.located.folder, self.spec.text_tokens)
        self.expander = open_expander(
            settings, self.recipe.device, spare_gb, self._device_for, self.token_limit.fitted
        )

    def load(self) -> Family:
        """The weights, read once, the safety classifiers' too.

        Raises `OutOfMemory` when no recipe gets the model onto the device.
        """
        if self._family is None:
            self.safety.load()
            log.info("model %s (%s)", self.spec.name, self.model_reason)
            log.info("recipe %s (%s)", self.recipe, self.recipe_reason)
            clear_abandoned(self.settings)
            threading.Thread(target=self.storage.flush, name="flush", daemon=True).start()
            self._family = self._or_leaner(partial(self._or_eager, self._load))
            self.finish.load()
        return self._family

    def start(self, startup: Startup) -> None:
        """All that the first job would wait for, each part a stage of `startup`.

        Raises `OutOfMemory` as `load` does, and `ConfigurationError` for a prompt writer that
        cannot be read.
        """
        import_family(self.spec)
        startup.done("libraries")
        self.safety.load()
        startup.done("safety")
        self.load()
        startup.done("model")
        self.expander.load()
        startup.done("writer")
        if self.recipe.compiled:
            kept = compile_cache.Kept(compile_cache.file_for(self.settings, self.gpu, self.recipe))
            startup.done("compiled code")
        self.warm_up()
        if self.recipe.compiled:
            kept.keep()
        startup.done("warm-up")

    def warm_up(self) -> None:
        """One step of the model at each size as a 16:9 picture is rendered, for CUDA loads a kernel
        when it is first used. Nothing on a CPU. Raises `OutOfMemory`."""
        if self.recipe.device == "cpu":
            return
        shot = Script((ScriptShot("", 5),))
        media = Media(Image.new("RGB", (1280, 720)), None)
        sizes = set()
        for name in get_args(Size):
            request = VideoRequest(prompt="x", image="data:,", size=name, seed=0)
            plan = self._plan(request, shot, media)
            sizes.add((plan.render_width, plan.render_height))
        with self._device:
            for size in sorted(sizes):
                self._or_leaner(partial(self._or_eager, partial(self._one_step, size)))

    def _one_step(self, size: tuple[int, int]) -> None:
        def on_step(count: int) -> None:
            if count > 0:
                raise _Warm

        asked = SegmentInput("", "", Image.new("RGB", size), *size, _WARM_FRAMES, seed=0)
        with suppress(_Warm):
            self.load().denoise(asked, on_step)

    def _load(self) -> Family:
        located = self.located
        return load_family(self.spec, located.folder, self.recipe, located.loras)

    def generate(
        self,
        request: VideoRequest,
        control: Control | None = None,
        storage: Storage | None = None,
    ) -> VideoResult:
        """One clip, stored, in `storage` where the job has one of its own. Raises the errors of
        `wan_engine.errors`; leaves nothing in scratch."""
        control = control or Control(
            deadline_seconds=self.settings.job_seconds, hang_seconds=self.settings.hang_seconds
        )
        storage = storage or self.storage
        if done := storage.finished(control.job_id, control):
            url, record = done
            log.info("job %s was finished before: its clip is given again", control.job_id)
            return _result(url, record)
        request = _settled(request)
        with memory.measured():
            counted = self._counted(control.job_id, not self.settings.prefetch)
            with counted, job_folder(self.settings) as folder:
                prepare = partial(self.prepare, request, folder, control)
                media, expansion = self._or_leaner(prepare, beside=control)
                plan, how = self._plan(request, expansion.script, media), self._how()
                estimates.refuse_if_too_long(self.settings, request, plan, how, control)
                warnings = self._warnings(request, plan, media, expansion)
                video = self.render(request, plan, media, folder, control)
                result = self.publish(request, plan, warnings, video, control, storage)
            self._log_summary(request, plan, video, control)
        if how == self._how():  # else it was rendered twice, the first time in vain
            estimates.remember(self.settings, plan, how, control.stage_seconds)
        return replace(result, expanded_prompt=expansion.text, plan=plan)

    def dry_run(self, request: VideoRequest, control: Control | None = None) -> dict[str, Any]:
        """What `generate` would render, as `outline` has it. Fetches what the request points to and
        expands the prompt, as a plan depends on both; checks, renders and stores nothing."""
        request = _settled(request.model_copy(update={"enable_safety_checker": False}))
        with job_folder(self.settings) as folder:
            media, expansion = self.prepare(request, folder, control or Control())
            plan = self._plan(request, expansion.script, media)
        return outline(
            plan,
            self.spec,
            made_by=self.finish.describe(plan).strip(", "),
            seconds=estimates.expected_seconds(self.settings, plan, self._how()),
            price=cost(request.size, request.duration, self.settings.prices),
        )

    def _plan(self, request: VideoRequest, script: Script, media: Media) -> Plan:
        fps = self.settings.fps
        limits = PlanLimits(self.settings.frame, None if fps == "native" else fps)
        return make_plan(request, script, media, self.spec, limits)

    def _how(self) -> str:
        """What decides how long a frame takes, beside its size. The machine is a part of it, as
        several may share one cache folder."""
        where = f"{self.gpu.name if self.gpu else 'no GPU'}, {os.cpu_count()} cores"
        how = (self.finish.interpolation, self.finish.upscaling, where)
        return f"{self.spec.name}, {self.spec.steps} steps, {self.recipe}, {', '.join(how)}"

    @contextmanager
    def _counted(self, job_id: str, here: bool) -> Iterator[None]:
        """Refuse a job that has killed its worker before, whichever worker that was; nothing
        unless `here`: around the whole job, or its render alone where jobs overlap, so that the
        one that waits is not blamed for what the other does."""
        if self._starts is None or not here:
            yield
            return
        self._starts.begin(job_id)
        try:
            yield
        finally:
            self._starts.end(job_id)

    def prepare(
        self, request: VideoRequest, folder: Path, control: Control
    ) -> tuple[Media, Expansion]:
        """Fetch and check what the request points to, and expand the prompt if that is asked.

        The model's device is not held.
        """
        settings = self.settings
        control.progress("prepare", 0, 2 if request.audio else 1)
        if request.enable_safety_checker:
            self.safety.check_prompt(request.prompt, control)
        data = fetch(request.image, "image", self._fetch_limits(settings.image_max_bytes), control)
        sides = ImageLimits(settings.image_min_side, settings.image_max_side)
        image = open_image(data, sides, first_frame=request.first_frame)
        if request.enable_safety_checker:
            self.safety.check_image(image, control)
        audio = None
        if request.audio:
            control.progress("prepare", 1, 2)
            limits = self._fetch_limits(settings.audio_max_bytes)
            data = fetch(request.audio, "audio", limits, control)
            audio = open_audio(data, folder, AudioLimits(settings.audio_max_seconds), control)
        expansion = Expansion.none(request)
        if request.enable_prompt_expansion:
            control.enter("expand")
            expansion = self.expander.expand(request, image, control)
            control.enter("prepare")
            if request.enable_safety_checker:
                expansion = self._checked(expansion, request, control)
        media = Media(image, audio)
        if len(expansion.script.shots) > 1:
            media = replace(media, subject=subject(image))
        return media, expansion

    def _checked(self, expansion: Expansion, request: VideoRequest, control: Control) -> Expansion:
        """The expansion, or none where the guard flags what a writer made of a clean prompt."""
        try:
            for shot in expansion.script.shots:
                self.safety.check_prompt(shot.text, control)
        except ContentPolicy:
            warning = "The expanded prompt was flagged: the prompt was used as it is"
            return replace(Expansion.none(request), warning=warning)
        return expansion

    def render(
        self, request: VideoRequest, plan: Plan, media: Media, folder: Path, control: Control
    ) -> EncodedVideo:
        """Segments to latents to frames to mp4. The device is held for the time of it.

        Out of memory repeats it once with the next leaner recipe, which is kept for later jobs.
        """
        comment = (
            f"AI-generated video; model {self.spec.name}; seed {plan.seed}; wan_engine {VERSION}"
            if self.settings.metadata
            else ""
        )
        options = EncodeOptions(self.settings.crf, self.settings.preset, comment)
        control.enter("queue")
        negative = negative_prompt(request.negative_prompt, self.spec, self.settings)

        def once() -> EncodedVideo:
            set_limits(control, plan, self.settings, self.spec, self.recipe, self._how())
            control.enter("load")
            family = self.load()
            frames = self._frames(family, plan, media.image, negative, control)
            if request.enable_safety_checker:
                frames = self.safety.watch(frames, plan.source_fps, control)
            # A generator that an error's traceback keeps would clear the VAE under the next job.
            stream, shown = self.finish.apply(frames, plan, control)
            with closing(stream):
                return encode(stream, shown, media.audio, folder / "clip.mp4", options, control)

        with self._device_for(control), self._counted(control.job_id, self.settings.prefetch):
            return self._or_leaner(partial(self._or_eager, once))

    def _or_leaner(self, work: Callable[[], T], *, beside: Control | None = None) -> T:
        """What `work` gives; when memory does not suffice, once more with the next leaner recipe.
        `beside` is the job of work that does not hold the device.

        Raises `OutOfMemory` with what would fit.
        """
        try:
            return work()
        except (OutOfMemory, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Not in the handler above: what it holds of the failed run keeps that run's memory.
        with self._device_for(beside) if beside else nullcontext():
            self._become_leaner()
        try:
            return work()
        except (OutOfMemory, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(self._too_little_memory()) from None

    def _become_leaner(self) -> None:
        recipe = recipes.leaner(self.recipe)
        uncompiled = recipe is not None and self.recipe.compiled and not recipe.compiled
        if recipe is None or (uncompiled and self.settings.compile == "required"):
            raise OutOfMemory(self._too_little_memory())
        log.warning("out of memory with %s: from now on with %s", self.recipe, recipe)
        self._family = None
        memory.free_accelerator()
        self.recipe, self.recipe_reason = recipe, "the one before it ran out of memory"

    def _or_eager(self, work: Callable[[], T]) -> T:
        """What `work` gives; when its blocks cannot be compiled, once more with them as they are,
        which is kept. Raises `CompileFailed` where WAN_COMPILE is `required`."""
        try:
            return work()
        except CompileFailed as failed:
            if self.settings.compile == "required":
                log.error("compiling failed: %s", failed.why)
                raise
            why = failed.why
            log.warning("compiling failed: %s", why, exc_info=failed.__cause__)
        # Not in the handler above: what it holds of the failed run keeps that run's memory.
        if self._family is not None:  # else it could not even be asked for
            self._family.run_eagerly()
        self.recipe = replace(self.recipe, compiled=False)
        self.recipe_reason = f"{recipes.NOT_COMPILED}: {why}"
        log.warning("recipe %s (%s)", self.recipe, self.recipe_reason)
        return work()

    def _too_little_memory(self) -> str:
        fitting = recipes.smaller(self.spec, self.gpu)
        return f"The worker has too little GPU memory for {self.spec.name}: {fitting}"

    @contextmanager
    def _device_for(self, control: Control) -> Iterator[None]:
        """The device, for one job at a time; the wait for it can be cancelled."""
        while not self._device.acquire(timeout=_POLL_SECONDS):
            control.checkpoint()
        control.has_device = True
        try:
            control.checkpoint()  # it may have come with the end of this process
            yield
        finally:
            control.has_device = False
            self._device.release()

    def publish(
        self,
        request: VideoRequest,
        plan: Plan,
        warnings: list[str],
        video: EncodedVideo,
        control: Control,
        storage: Storage,
    ) -> VideoResult:
        """Store the file; its URL and the record by which the job id finds it again."""
        control.progress("publish", 0, 1)
        record = {
            "cost": str(cost(request.size, request.duration, self.settings.prices)),
            "seed": plan.seed,
            "model": self.spec.name,
            "warnings": warnings,
        }
        url = storage.put(video.path, control.job_id, record, control)
        control.enter(None)
        return _result(url, record, control.stage_seconds)

    def _frames(
        self, family: Family, plan: Plan, image: Image.Image, negative: str, control: Control
    ) -> Generator[Frames, None, None]:
        """Frames of the whole clip as they are decoded; never more than one chunk is held."""
        size = plan.render_width, plan.render_height
        steps, decoded = family.spec.steps, 0
        all_steps, done_steps = steps * len(plan.segments), 0

        def on_step(count: int) -> None:
            control.progress("denoise", done_steps + count, all_steps)

        for shot in plan.shots:
            start, carry = fit(cropped(image, shot.crop), *size), Carry()
            joined = Joined(blend=family.spec.continuation == "last_frames")
            for segment in shot.segments:
                on_step(0)
                numbers = *size, segment.frames, segment.seed
                asked = SegmentInput(shot.prompt, negative, start, *numbers, carry)
                latents = family.denoise(asked, on_step)
                done_steps += steps
                joined.begin(segment)
                for chunk in family.decode(latents, carry, continued=segment.hold > 0):
                    control.progress("decode", decoded, plan.source_frames)
                    shown = joined.add(chunk)
                    decoded += len(shown)
                    if len(shown):
                        yield shown
                        control.enter("decode")
                    # Before the last segment the decoder must come to its end, to be gone on from.
                    if joined.complete and not segment.hold:
                        break
                if segment.hold:
                    carry.frames = joined.tail
        control.progress("encode", 0, 1)

    def _fetch_limits(self, max_bytes: int) -> FetchLimits:
        return FetchLimits(
            max_bytes=max_bytes,
            seconds=self.settings.fetch_seconds,
            allow_private=self.settings.allow_private_urls,
        )

    def _warnings(
        self, request: VideoRequest, plan: Plan, media: Media, expansion: Expansion
    ) -> list[str]:
        warnings = self.finish.warnings(plan)
        if self.spec.caveat:
            warnings.append(f"{self.spec.name} is {self.spec.caveat}")
        if request.enable_safety_checker:
            warnings += self.safety.warnings()
        if expansion.warning:
            warnings.append(expansion.warning)
        callers = expansion.in_the_callers_words
        warnings += self.token_limit.warnings(request, self.spec, self.settings, whole=callers)
        if media.audio and media.audio.seconds < _SHORT_AUDIO_SECONDS:
            warnings.append(f"The audio is only {media.audio.seconds:.1f} seconds long")
        return warnings

    def _log_summary(
        self, request: VideoRequest, plan: Plan, video: EncodedVideo, control: Control
    ) -> None:
        stages = " ".join(f"{name} {took:.1f}s" for name, took in control.stage_seconds.items())
        log.info(
            "job %s: %s %ds %dx%d seed %d model %s, %d frames at %d fps%s, %d bytes; %s; "
            "peak memory %s",
            control.job_id,
            request.size,
            request.duration,
            plan.width,
            plan.height,
            plan.seed,
            self.spec.name,
            video.frames,
            plan.fps,
            self.finish.describe(plan),
            video.bytes,
            stages,
            ", ".join(f"{where} {used} MB" for where, used in memory.peaks().items()),
        )


def _settled(request: VideoRequest) -> VideoRequest:
    """The request with a seed of its own where it left that open."""
    if request.seed >= 0:
        return request
    return request.model_copy(update={"seed": secrets.randbelow(SEED_MAX + 1)})


def _result(
    url: str, record: Mapping[str, Any], stage_seconds: Mapping[str, float] | None = None
) -> VideoResult:
    return VideoResult(
        video_url=url,
        cost=Decimal(record["cost"]),
        seed=record["seed"],
        warnings=tuple(record["warnings"]),
        model=record["model"],
        stage_seconds=dict(stage_seconds or {}),
    )
