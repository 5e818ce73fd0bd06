"""The straight line from a request to a stored mp4: prepare, plan, render, publish. Nothing
else."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from PIL import Image

from wan_engine import acceleration, memory, weights
from wan_engine.catalog import ModelSpec
from wan_engine.control import Control
from wan_engine.errors import ConfigurationError, ContentPolicy, OutOfMemory
from wan_engine.families import load_family
from wan_engine.media import retime, upscale
from wan_engine.media.audio import AudioLimits, open_audio
from wan_engine.media.fetch import FetchLimits, fetch
from wan_engine.media.framing import cropped, subject
from wan_engine.media.images import ImageLimits, fit, open_image
from wan_engine.media.joins import Joined
from wan_engine.media.rife import Rife
from wan_engine.media.video import EncodeOptions, Frames, encode
from wan_engine.plan import PlanLimits, make_plan
from wan_engine.pricing import cost
from wan_engine.prompts import Expansion, open_expander
from wan_engine.safety import open_safety
from wan_engine.schema import (
    SEED_MAX,
    Carry,
    EncodedVideo,
    Media,
    Plan,
    SegmentInput,
    VideoRequest,
    VideoResult,
)
from wan_engine.scratch import clear_abandoned, job_folder
from wan_engine.settings import VERSION, Settings
from wan_engine.storage import Starts, open_storage

if TYPE_CHECKING:
    from wan_engine.families.base import Family

log = logging.getLogger(__name__)
T = TypeVar("T")

_NETWORKS = ("realesrgan", "kandinsky-sr")
_FULL_AREA = 1920 * 1088  # 1080p in sides that are multiples of 16
_POLL_SECONDS = 0.1
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
        _check_settings(settings, serverless=serverless)
        self.gpu = gpu = acceleration.detect(settings.device)
        self.located, self.model_reason = weights.select(
            settings, lambda spec: acceleration.fits(spec, gpu), fallback=not serverless
        )
        self.spec = with_overrides(self.located.spec, settings)
        self.recipe, self.recipe_reason = acceleration.choose(self.spec, gpu, settings.device)
        device = acceleration.beside(self.spec, gpu, self.recipe)
        self.safety = open_safety(settings, required=serverless, device=device)
        self.interpolation, self.interpolation_reason = retime.choose(settings)
        self.upscaling, self.upscaling_reason = upscale.choose(settings)
        self.storage = open_storage(settings)
        self._starts = (
            Starts(settings.spool_dir, keep_days=settings.keep_days) if settings.spool_dir else None
        )
        self._device = threading.Lock()
        self._family: Family | None = None
        spare_gb = acceleration.spare_gb(self.spec, gpu, self.recipe)
        self.expander = open_expander(settings, self.recipe.device, spare_gb, self._device_for)
        self._rife: Rife | None = None
        self._upscaler: upscale.Upscaler | None = None

    def load(self) -> Family:
        """The weights, read once, the safety classifiers' too.

        Raises `OutOfMemory` when no recipe gets the model onto the device.
        """
        if self._family is None:
            self.safety.load()
            log.info("model %s (%s)", self.spec.name, self.model_reason)
            log.info("recipe %s (%s)", self.recipe, self.recipe_reason)
            log.info("frames between by %s (%s)", self.interpolation, self.interpolation_reason)
            log.info("larger pictures by %s (%s)", self.upscaling, self.upscaling_reason)
            clear_abandoned(self.settings)
            threading.Thread(target=self.storage.flush, name="flush", daemon=True).start()
            self._family = self._or_leaner(self._load)
            if self.interpolation == "rife":
                self._between()  # now, so that wrong weights refuse to start
            if self.upscaling in _NETWORKS:
                self._load_upscaler()
        return self._family

    def _load(self) -> Family:
        located = self.located
        return load_family(self.spec, located.folder, self.recipe, located.loras)

    def generate(self, request: VideoRequest, control: Control | None = None) -> VideoResult:
        """One clip, stored. Raises the errors of `wan_engine.errors`; leaves nothing in scratch."""
        control = control or Control(deadline_seconds=self.settings.job_seconds)
        if done := self.storage.finished(control.job_id, control):
            url, record = done
            log.info("job %s was finished before: its clip is given again", control.job_id)
            return _result(url, record)
        if request.seed < 0:
            request = request.model_copy(update={"seed": secrets.randbelow(SEED_MAX + 1)})
        memory.reset_peaks()
        with self._counted(control.job_id), job_folder(self.settings) as folder:
            media, expansion = self.prepare(request, folder, control)
            fps = self.settings.fps
            limits = PlanLimits(self.settings.frame, None if fps == "native" else fps)
            plan = make_plan(request, expansion.script, media, self.spec, limits)
            video = self.render(request, plan, media, folder, control)
            warnings = self._warnings(request, plan, media, expansion)
            result = self.publish(request, plan, warnings, video, control)
        self._log_summary(request, plan, video, control)
        return replace(result, expanded_prompt=expansion.text)

    @contextmanager
    def _counted(self, job_id: str) -> Iterator[None]:
        """Refuse a job that has killed its worker before, whichever worker that was."""
        if self._starts is None:
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
        image = open_image(data, ImageLimits(settings.image_min_side, settings.image_max_side))
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
        negative = _negative_prompt(request, self.spec, self.settings)

        def once() -> EncodedVideo:
            control.enter("load")
            family = self.load()
            frames = self._frames(family, plan, media.image, negative, control)
            if request.enable_safety_checker:
                frames = self.safety.watch(frames, plan.source_fps, control)
            # A generator that an error's traceback keeps would clear the VAE under the next job.
            stream, shown = self._finished(frames, plan, control)
            with closing(stream):
                return encode(stream, shown, media.audio, folder / "clip.mp4", options, control)

        with self._device_for(control):
            return self._or_leaner(once)

    def _or_leaner(self, work: Callable[[], T]) -> T:
        """What `work` gives; when memory does not suffice, once more with the next leaner recipe.

        Raises `OutOfMemory` with what would fit.
        """
        try:
            return work()
        except OutOfMemory:
            recipe = acceleration.leaner(self.recipe)
            if recipe is None:
                raise OutOfMemory(self._too_little_memory()) from None
        # Not in the handler above: what it holds of the failed run keeps that run's memory.
        log.warning("out of memory with %s: from now on with %s", self.recipe, recipe)
        self._family = None
        memory.free_accelerator()
        self.recipe, self.recipe_reason = recipe, "the one before it ran out of memory"
        try:
            return work()
        except OutOfMemory:
            raise OutOfMemory(self._too_little_memory()) from None

    def _too_little_memory(self) -> str:
        fitting = acceleration.smaller(self.spec, self.gpu)
        return f"The worker has too little GPU memory for {self.spec.name}: {fitting}"

    @contextmanager
    def _device_for(self, control: Control) -> Iterator[None]:
        """The device, for one job at a time; the wait for it can be cancelled."""
        while not self._device.acquire(timeout=_POLL_SECONDS):
            control.checkpoint()
        try:
            yield
        finally:
            self._device.release()

    def publish(
        self,
        request: VideoRequest,
        plan: Plan,
        warnings: list[str],
        video: EncodedVideo,
        control: Control,
    ) -> VideoResult:
        """Store the file; its URL and the record by which the job id finds it again."""
        control.progress("publish", 0, 1)
        record = {
            "cost": str(cost(request.size, request.duration, self.settings.prices)),
            "seed": plan.seed,
            "model": self.spec.name,
            "warnings": warnings,
        }
        url = self.storage.put(video.path, control.job_id, record, control)
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
                for chunk in family.decode(latents, carry):
                    control.progress("decode", decoded, plan.source_frames)
                    shown = joined.add(chunk)
                    decoded += len(shown)
                    if len(shown):
                        yield shown
                        control.enter("decode")
                if segment.hold:
                    carry.frames = joined.tail
        control.progress("encode", 0, 1)

    def _finished(
        self, frames: Generator[Frames, None, None], plan: Plan, control: Control
    ) -> tuple[Generator[Frames, None, None], Plan]:
        """The model's frames as the clip has them, and the plan by which they are encoded. Closes
        what it was given when it is closed."""
        if self._enlarges(plan):
            frames = upscale.upscale(frames, plan, self._load_upscaler(), control)
            plan = upscale.upscaled(plan)
        if plan.fps != plan.source_fps:
            frames = retime.retime(frames, plan, self._between(), control)
        return frames, plan

    def _enlarges(self, plan: Plan) -> bool:
        return self.upscaling in _NETWORKS and upscale.is_larger(plan)

    def _load_upscaler(self) -> upscale.Upscaler:
        if self._upscaler is None:
            assert self.settings.upscale_weights is not None, "checked at start"
            weights = self.settings.upscale_weights
            self._upscaler = upscale.load(self.upscaling, weights, self.recipe.device)
        return self._upscaler

    def _between(self) -> retime.Between | Literal["mci"]:
        if self.interpolation != "rife":
            return "mci" if self.interpolation == "mci" else retime.blend
        if self._rife is None:
            assert self.settings.rife_weights is not None, "checked at start"
            self._rife = Rife(self.settings.rife_weights, self.recipe.device)
        self._rife.forget()
        return self._rife.between

    def _fetch_limits(self, max_bytes: int) -> FetchLimits:
        return FetchLimits(
            max_bytes=max_bytes,
            seconds=self.settings.fetch_seconds,
            allow_private=self.settings.allow_private_urls,
        )

    def _warnings(
        self, request: VideoRequest, plan: Plan, media: Media, expansion: Expansion
    ) -> list[str]:
        warnings = []
        blended = self.interpolation == "blend" and self.settings.interpolation == "auto"
        if blended and plan.fps != plan.source_fps:
            warnings.append(
                f"Frames between the model's {plan.source_fps} a second are means of two: "
                "moving edges are double"
            )
        if self.spec.built:
            warnings.append(
                f"{self.spec.name} has random weights: the clip shows texture, not the image"
            )
        if request.enable_safety_checker:
            warnings += self.safety.warnings()
        if expansion.warning:
            warnings.append(expansion.warning)
        if request.negative_prompt and self.spec.guidance_scale <= 1:
            warnings.append(f"{self.spec.name} works without CFG: no negative prompt is used")
        if media.audio and media.audio.seconds < _SHORT_AUDIO_SECONDS:
            warnings.append(f"The audio is only {media.audio.seconds:.1f} seconds long")
        return warnings

    def _made_by(self, plan: Plan) -> str:
        """What is not the model's own in the clip, for the log."""
        parts = []
        if upscale.is_larger(plan):
            how = self.upscaling if self._enlarges(plan) else "lanczos"
            parts.append(f", {plan.crop_width}x{plan.crop_height} enlarged by {how}")
        if plan.fps != plan.source_fps:
            parts.append(f", from {plan.source_fps} fps by {self.interpolation}")
        return "".join(parts)

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
            self._made_by(plan),
            video.bytes,
            stages,
            ", ".join(f"{where} {used} MB" for where, used in memory.peaks().items()),
        )


def _check_settings(settings: Settings, *, serverless: bool) -> None:
    if serverless and settings.storage == "auto" and not settings.has_bucket:
        raise ConfigurationError(
            "No bucket is set, and a serverless worker's own disk is lost with it. Set "
            "BUCKET_ENDPOINT_URL, BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY, or "
            "WAN_STORAGE=local to keep clips here."
        )


def with_overrides(spec: ModelSpec, settings: Settings) -> ModelSpec:
    """The row with what the operator set differently."""
    overrides = {
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "guidance_scale_2": settings.guidance_scale_2,
        "flow_shift": settings.flow_shift,
        "max_area": settings.render_area or (_FULL_AREA if settings.upscale == "native" else None),
    }
    given: dict[str, Any] = {name: value for name, value in overrides.items() if value is not None}
    spec = _with_continuation(replace(spec, **given), settings)
    # The pipeline decides by the first scale alone whether there is a second forward.
    if spec.guidance_scale <= 1 < (spec.guidance_scale_2 or 1):
        raise ConfigurationError(
            "WAN_GUIDANCE_SCALE is 1, which switches CFG off for both experts, but "
            f"WAN_GUIDANCE_SCALE_2 is {spec.guidance_scale_2:g}. Set both to 1, or the first "
            "above 1."
        )
    return spec


def _with_continuation(spec: ModelSpec, settings: Settings) -> ModelSpec:
    wanted, overlap = settings.continuation, spec.overlap_frames
    if wanted == "auto":
        return spec
    if wanted == "last_frame":
        wanted, overlap = "last_frames", 1
    if wanted not in spec.continuations:
        raise ConfigurationError(
            f"WAN_CONTINUATION is {settings.continuation}, which {spec.name} cannot do: it takes "
            f"{' or '.join(('auto', *spec.continuations))}."
        )
    pair = {lora.expert for lora in settings.lora}
    if wanted == "svi" and spec.continuation != "svi" and not pair >= {"high", "low"}:
        raise ConfigurationError(
            "WAN_CONTINUATION is svi, which needs the Stable Video Infinity 2.0 Pro LoRA pair: set "
            "WAN_MODEL=wan2.2-i2v-a14b-4step-svi, or name the pair in WAN_LORA, one file for the "
            "expert `high` and one for `low`."
        )
    return replace(spec, continuation=wanted, overlap_frames=overlap)


def _negative_prompt(request: VideoRequest, spec: ModelSpec, settings: Settings) -> str:
    if request.negative_prompt is None:
        return spec.negative_prompt
    if settings.negative_prompt == "replace":
        return request.negative_prompt
    # The caller's words first: what is longer than the text encoder takes is cut at the end.
    return f"{request.negative_prompt}, {spec.negative_prompt}"


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
