"""The straight line from a request to a stored mp4: prepare, plan, render, publish. Nothing
else."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_engine.catalog import ModelSpec
from wan_engine.catalog.with_settings import negative_prompt
from wan_engine.control import Control
from wan_engine.errors import ContentPolicy
from wan_engine.media.audio import AudioLimits, open_audio
from wan_engine.media.fetch import FetchLimits, fetch
from wan_engine.media.framing import subject
from wan_engine.media.images import ImageLimits, open_image
from wan_engine.media.postprocess import Postprocess
from wan_engine.media.video import EncodeOptions
from wan_engine.plan import PlanLimits, described, make_plan
from wan_engine.pool import Pool
from wan_engine.pricing import cost
from wan_engine.prompts import Expansion, open_expander
from wan_engine.prompts.token_limit import TokenLimit
from wan_engine.render import render
from wan_engine.runtime import estimates, memory
from wan_engine.runtime.recipes import Recipe
from wan_engine.runtime.scratch import clear_abandoned, job_folder
from wan_engine.runtime.startup import Startup
from wan_engine.runtime.time_limits import set_limits
from wan_engine.safety import open_safety
from wan_engine.schema import (
    SEED_MAX,
    EncodedVideo,
    Media,
    Plan,
    Script,
    VideoRequest,
    VideoResult,
)
from wan_engine.settings import VERSION, Settings
from wan_engine.storage import CrashCounts, Storage, open_storage

if TYPE_CHECKING:
    from wan_engine.families.base import Family

log = logging.getLogger(__name__)

_SHORT_AUDIO_SECONDS = 3  # the hosted page's minimum; shorter sound is taken with a warning


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
        self.pool = pool = Pool(settings, real=serverless)
        self.limits = PlanLimits(settings.frame, None if settings.fps == "native" else settings.fps)
        self.safety = open_safety(settings, required=serverless, device=pool.device_beside)
        self.postprocess = Postprocess(settings, pool.recipe.device)
        self.token_limit = TokenLimit(pool.located.folder, pool.spec.text_tokens)
        self.expander = open_expander(
            settings, pool.recipe.device, pool.spare_gb, pool.device, self.token_limit.fitted
        )
        self._crashes = CrashCounts(settings.spool_dir, keep_days=settings.keep_days)

    @property
    def spec(self) -> ModelSpec:
        return self.pool.spec

    @property
    def recipe(self) -> Recipe:
        """How the model is run now."""
        return self.pool.recipe

    # --- the start -------------------------------------------------------------------------------

    def load(self) -> Family:
        """The weights, read once, the safety classifiers' too.

        Raises `OutOfMemory` when no recipe gets the model onto the device.
        """
        if self.pool.family is None:
            self.safety.load()
            clear_abandoned(self.settings)
            threading.Thread(target=self.storage.flush, name="flush", daemon=True).start()
            self.pool.load()
            self.postprocess.load()
        return self.pool.load()

    def start(self, startup: Startup) -> None:
        """All that the first job would wait for, each part a stage of `startup`.

        Raises `OutOfMemory` as `load` does, and `ConfigurationError` for a prompt writer that
        cannot be read.
        """
        self.pool.import_libraries()
        startup.done("libraries")
        self.safety.load()
        startup.done("safety")
        self.load()
        startup.done("model")
        self.expander.load()
        startup.done("writer")
        self.pool.warm_up(self.limits, startup)
        startup.done("warm-up")

    # --- the line --------------------------------------------------------------------------------

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
            return _from_record(url, record)
        request = _settled(request)
        with memory.measured():
            # Around the whole job, or its render alone where jobs overlap, so that the one that
            # waits is not blamed for what the other does.
            counted = nullcontext() if self.settings.prefetch else self._counted(control)
            with counted, job_folder(self.settings) as folder:
                prepare = partial(self.prepare, request, folder, control)
                media, expansion = self.pool.run(prepare, beside=control)
                plan, how = self.plan(request, expansion.script, media), self._how()
                estimates.refuse_if_too_long(self.settings, request, plan, how, control)
                warnings = self._warnings(request, plan, media, expansion)
                video = self.render(request, plan, media, folder, control)
                result = self.publish(request, plan, warnings, video, control, storage)
            self._log_summary(request, plan, video, control)
        if how == self._how():  # else it was rendered twice, the first time in vain
            estimates.remember(self.settings, plan, how, control.stage_seconds)
        return replace(result, expanded_prompt=expansion.text, plan=plan)

    def dry_run(self, request: VideoRequest, control: Control | None = None) -> dict[str, Any]:
        """What `generate` would render, as `plan.described` has it. Fetches what the request points
        to and expands the prompt, as a plan depends on both; checks, renders and stores nothing."""
        request = _settled(request.model_copy(update={"enable_safety_checker": False}))
        with job_folder(self.settings) as folder:
            media, expansion = self.prepare(request, folder, control or Control())
            plan = self.plan(request, expansion.script, media)
        return described(
            plan,
            self.spec,
            made_by=", ".join(self.postprocess.describe(plan)),
            seconds=estimates.expected_seconds(self.settings, plan, self._how()),
            price=cost(request.size, request.duration, self.settings.prices),
        )

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

    def plan(self, request: VideoRequest, script: Script, media: Media) -> Plan:
        """Every number of the clip. `request.seed` must be settled."""
        return make_plan(request, script, media, self.spec, self.limits)

    def render(
        self, request: VideoRequest, plan: Plan, media: Media, folder: Path, control: Control
    ) -> EncodedVideo:
        """Segments to latents to frames to mp4. The device is held for the time of it.

        Out of memory repeats it once with the next leaner recipe, which is kept for later jobs.
        """
        comment = f"AI-generated video; model {self.spec.name}; seed {plan.seed}"
        comment = f"{comment}; wan_engine {VERSION}" if self.settings.metadata else ""
        options = EncodeOptions(self.settings.crf, self.settings.preset, comment)
        negative = negative_prompt(request.negative_prompt, self.spec, self.settings)
        watch = self.safety.watch if request.enable_safety_checker else None
        control.enter("queue")

        def once() -> EncodedVideo:
            set_limits(control, plan, self.settings, self.spec, self.recipe, self._how())
            control.enter("load")
            return render(
                self.load(),
                plan,
                media,
                negative,
                folder / "clip.mp4",
                control,
                watch=watch,
                postprocess=self.postprocess,
                options=options,
            )

        counted = self._counted(control) if self.settings.prefetch else nullcontext()
        with self.pool.device(control), counted:
            return self.pool.run(once)

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
        price = cost(request.size, request.duration, self.settings.prices)
        record = {
            "cost": str(price),
            "seed": plan.seed,
            "model": self.spec.name,
            "warnings": warnings,
        }
        url = storage.put(video.path, control.job_id, record, control)
        control.enter(None)
        return VideoResult(
            video_url=url,
            cost=price,
            seed=plan.seed,
            warnings=tuple(warnings),
            model=self.spec.name,
            stage_seconds=dict(control.stage_seconds),
        )

    # --- what the line is told -------------------------------------------------------------------

    def _counted(self, control: Control) -> AbstractContextManager[None]:
        """Refuse a job that has killed its worker before, whichever worker that was."""
        return self._crashes.counting(control.job_id)

    def _how(self) -> str:
        """What decides how long a frame takes, beside its size."""
        made = (self.postprocess.interpolation, self.postprocess.upscaling)
        return estimates.kind_of_work(self.spec, self.recipe, self.pool.gpu, *made)

    def _fetch_limits(self, max_bytes: int) -> FetchLimits:
        return FetchLimits(
            max_bytes=max_bytes,
            seconds=self.settings.fetch_seconds,
            allow_private=self.settings.allow_private_urls,
        )

    def _warnings(
        self, request: VideoRequest, plan: Plan, media: Media, expansion: Expansion
    ) -> list[str]:
        warnings = self.postprocess.warnings(plan)
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
            "".join(f", {part}" for part in self.postprocess.describe(plan)),
            video.bytes,
            stages,
            ", ".join(f"{where} {used} MB" for where, used in memory.peaks().items()),
        )


def _settled(request: VideoRequest) -> VideoRequest:
    """The request with a seed of its own where it left that open."""
    if request.seed >= 0:
        return request
    return request.model_copy(update={"seed": secrets.randbelow(SEED_MAX + 1)})


def _from_record(url: str, record: Mapping[str, Any]) -> VideoResult:
    return VideoResult(
        video_url=url,
        cost=Decimal(record["cost"]),
        seed=record["seed"],
        warnings=tuple(record["warnings"]),
        model=record["model"],
    )
