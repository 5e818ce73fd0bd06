"""Turns a request into a stored mp4: prepare, plan, render, publish. Nothing else."""

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

from PIL import Image

from wan_engine import weights
from wan_engine.catalog import ModelSpec
from wan_engine.catalog.with_settings import negative_prompt
from wan_engine.choice import Choice, choose
from wan_engine.control import Control
from wan_engine.errors import ContentPolicy, InvalidMedia
from wan_engine.media.audio import AudioLimits, open_audio
from wan_engine.media.fetch import FetchLimits, fetch
from wan_engine.media.framing import subject
from wan_engine.media.images import ImageLimits, open_image
from wan_engine.media.postprocess import Postprocess
from wan_engine.media.reference_videos import (
    Reference,
    ReferenceLimits,
    open_reference,
    with_references,
)
from wan_engine.media.video import EncodeOptions
from wan_engine.plan import PlanLimits, described, make_plan
from wan_engine.pool import Model, Pool
from wan_engine.pricing import cost
from wan_engine.prompts import Expansion, open_expander
from wan_engine.prompts.subjects import check_subjects, with_words
from wan_engine.prompts.token_limit import TokenLimit
from wan_engine.render import RenderOptions, render
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
    Order,
    Plan,
    Request,
    Script,
    VideoResult,
)
from wan_engine.settings import VERSION, Settings
from wan_engine.storage import CrashCounts, Storage, open_storage

if TYPE_CHECKING:
    from wan_engine.families.base import Family

log = logging.getLogger(__name__)

_SHORT_AUDIO_SECONDS = 3  # the hosted page's minimum; shorter sound is accepted with a warning


class Engine:
    """The models of the configured tasks on one device. Several threads may submit jobs; the device
    works on one at a time.

    The constructor makes every choice and raises `ConfigurationError` with what to do; `load` loads
    the weights. `serverless` is the Runpod loop: there a missing model or bucket is an error.
    """

    def __init__(self, settings: Settings | None = None, *, serverless: bool = False) -> None:
        self.settings = settings = settings or Settings.load()
        self.storage = open_storage(settings, lasting=serverless)
        self.pool = pool = Pool(settings, real=serverless)
        self.limits = PlanLimits(settings.frame, None if settings.fps == "native" else settings.fps)
        self.safety = open_safety(settings, required=serverless, device=pool.device_beside)
        self.postprocess = Postprocess(
            settings, pool.main.recipe.device, weights.choose_upscaling(settings)
        )
        self.expander = open_expander(settings, pool.main.recipe.device, pool.spare_gb, pool.device)
        self._token_limits = {
            task: TokenLimit(model.located.folder, model.spec.text_tokens)
            for task, model in pool.models.items()
        }
        self._begun = False
        self._crashes = CrashCounts(settings.spool_dir, keep_days=settings.keep_days)

    @property
    def spec(self) -> ModelSpec:
        """The catalogue row of the main model."""
        return self.pool.main.spec

    @property
    def recipe(self) -> Recipe:
        """The recipe of the main model now."""
        return self.pool.main.recipe

    # --- the start -------------------------------------------------------------------------------

    def load(self) -> Family:
        """Load the weights of as many models as fit, and of the safety classifiers, once. Returns
        the main model.

        Raises `OutOfMemory` if no recipe gets the first model onto the device.
        """
        self._begin()
        return self.pool.load_all()

    def _begin(self) -> None:
        """Prepare for the first clip, whichever model makes it."""
        if self._begun:
            return
        self.safety.load()
        clear_abandoned(self.settings)
        threading.Thread(target=self.storage.flush, name="flush", daemon=True).start()
        self.postprocess.load()
        self._begun = True

    def start(self, startup: Startup) -> None:
        """Load everything that the first job needs. Each part is a stage of `startup`.

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
        request: Request | Order,
        control: Control | None = None,
        storage: Storage | None = None,
    ) -> VideoResult:
        """Render and store one clip, in `storage` if the job has its own. Raises the errors of
        `wan_engine.errors`, and leaves nothing in scratch."""
        control = control or Control(
            deadline_seconds=self.settings.job_seconds, hang_seconds=self.settings.hang_seconds
        )
        storage = storage or self.storage
        if done := storage.finished(control.job_id, control):
            url, record = done
            log.info("job %s was finished before: its clip is returned again", control.job_id)
            return _from_record(url, record)
        order = _settled(request)
        choice = self.choose(order)
        model = self.pool.models[choice.spec.task]
        with memory.measured():
            # It covers the whole job, or its render alone if jobs overlap, so that the job that
            # waits is not blamed for the other one.
            counted = nullcontext() if self.settings.prefetch else self._counted(control)
            with counted, job_folder(self.settings) as folder:
                prepare = partial(self.prepare, order, choice, folder, control)
                media, expansion = self.pool.run(model, prepare, beside=control)
                plan, how = self.plan(order, choice, expansion.script, media), self._how(model)
                estimates.refuse_if_too_long(self.settings, order, plan, how, control)
                warnings = self._warnings(order, choice, plan, media, expansion)
                video = self.render(order, choice, plan, media, folder, control)
                result = self.publish(order, choice, plan, warnings, video, control, storage)
            self._log_summary(order, choice, plan, video, control)
        if how == self._how(model):  # otherwise it was rendered twice
            estimates.remember(self.settings, plan, how, control.stage_seconds)
        return replace(result, expanded_prompt=expansion.text, plan=plan)

    def dry_run(self, request: Request | Order, control: Control | None = None) -> dict[str, Any]:
        """The plan of the clip that `generate` would render (`plan.described`). Fetches media and
        expands the prompt, because a plan depends on both; checks, renders and stores nothing."""
        order = replace(_settled(request), check_content=False)
        choice = self.choose(order)
        with job_folder(self.settings) as folder:
            media, expansion = self.prepare(order, choice, folder, control or Control())
            plan = self.plan(order, choice, expansion.script, media)
        how = self._how(self.pool.models[choice.spec.task])
        return described(
            plan,
            choice.spec,
            chosen=choice.described(),
            made_by=", ".join(self.postprocess.describe(plan)),
            seconds=estimates.expected_seconds(self.settings, plan, how),
            price=self._price(order),
        )

    def choose(self, order: Order) -> Choice:
        """The model for `order`. Raises `NotServed`."""
        return choose(order, self.pool.rows)

    def prepare(
        self, order: Order, choice: Choice, folder: Path, control: Control
    ) -> tuple[Media, Expansion]:
        """Fetch and check the media of the order, and expand the prompt if asked. Does not hold the
        device of the models."""
        sources = order.references or ()
        steps = max(1, len(sources)) + bool(order.audio)
        control.progress("prepare", 0, steps)
        check_subjects(order)
        if order.check_content:
            self.safety.check_prompt(order.prompt, control)
        width, height = (int(side) for side in order.aspect_ratio.split(":"))
        media = Media(
            image=self._picture("image", order.image, order, control),
            last_image=self._picture("last_image", order.last_image, order, control),
            aspect=(width, height),
        )
        references = []
        for index, source in enumerate(sources):
            control.progress("prepare", index, steps)
            references.append(self._reference(index, source, order, folder, control))
        media = with_references(media, references)
        if order.audio:
            control.progress("prepare", steps - 1, steps)
            limits = self._fetch_limits(self.settings.audio_max_bytes)
            data = fetch(order.audio, "audio", limits, control)
            longest = AudioLimits(self.settings.audio_max_seconds)
            media = replace(media, audio=open_audio(data, folder, longest, control))
        expansion = Expansion.none(order)
        if order.expand_prompt:
            control.enter("expand")
            fitted = self._token_limits[choice.spec.task].fitted
            expansion = self.expander.expand(order, media.image, control, fitted)
            control.enter("prepare")
            if order.check_content:
                expansion = self._checked(expansion, order, control)
        expansion = replace(expansion, script=with_words(expansion.script, order))
        if len(expansion.script.shots) > 1 and media.image is not None:
            media = replace(media, subject=subject(media.image))
        return media, expansion

    def _picture(
        self, field: str, source: str | None, order: Order, control: Control
    ) -> Image.Image | None:
        """Fetch, open and check a picture of the order. None if the order has none."""
        if source is None:
            return None
        settings = self.settings
        data = fetch(source, field, self._fetch_limits(settings.image_max_bytes), control)
        sides = ImageLimits(settings.image_min_side, settings.image_max_side)
        try:
            image = open_image(data, sides, first_frame=order.any_frames)
        except InvalidMedia as error:
            raise InvalidMedia(field, error.why) from error
        if order.check_content:
            self.safety.check_image(image, control)
        return image

    def _reference(
        self, index: int, source: str, order: Order, folder: Path, control: Control
    ) -> Reference:
        """Fetch, open and check a subject of the order: its pictures, and one frame per second of
        its video."""
        settings, field = self.settings, f"references[{index}]"
        data = fetch(source, field, self._fetch_limits(settings.reference_max_bytes), control)
        limits = ReferenceLimits(
            image=ImageLimits(settings.image_min_side, settings.image_max_side),
            image_max_bytes=settings.image_max_bytes,
            max_seconds=settings.reference_max_seconds,
            min_fps=settings.reference_min_fps,
            first_frame=order.any_frames,
        )
        reference = open_reference(data, folder, limits, control, field)
        if order.check_content:
            for picture in reference.pictures:
                self.safety.check_image(picture, control)
            self.safety.check_frames(reference.samples, control)
        return reference

    def _checked(self, expansion: Expansion, order: Order, control: Control) -> Expansion:
        """The expansion, or the original prompt if the guard flags what a writer made of it."""
        try:
            for shot in expansion.script.shots:
                self.safety.check_prompt(shot.text, control)
        except ContentPolicy:
            warning = "The expanded prompt was flagged: the prompt was used as it is"
            return replace(Expansion.none(order), warning=warning)
        return expansion

    def plan(self, order: Order, choice: Choice, script: Script, media: Media) -> Plan:
        """Compute every number of the clip. `order.seed` must be chosen (not -1)."""
        return make_plan(order, script, media, choice.spec, self.limits)

    def render(
        self,
        order: Order,
        choice: Choice,
        plan: Plan,
        media: Media,
        folder: Path,
        control: Control,
    ) -> EncodedVideo:
        """Render segments to latents to frames to mp4. Holds the device meanwhile.

        If memory runs out, it renders again with less on the device (`Pool.run`).
        """
        model, spec = self.pool.models[choice.spec.task], choice.spec
        options = RenderOptions(
            negative_prompt=negative_prompt(order.negative_prompt, spec, self.settings),
            track=choice.track,
            watch=self.safety.watch if order.check_content else None,
            postprocess=self.postprocess,
            encoding=EncodeOptions(
                self.settings.crf, self.settings.preset, self._comment(choice, plan)
            ),
        )
        control.enter("queue")

        def once() -> EncodedVideo:
            set_limits(control, plan, self.settings, spec, model.recipe, self._how(model))
            control.enter("load")
            self._begin()
            return render(self.pool.load(model, control), plan, media, options, folder, control)

        counted = self._counted(control) if self.settings.prefetch else nullcontext()
        with self.pool.device(control), counted:
            return self.pool.run(model, once)

    def publish(
        self,
        order: Order,
        choice: Choice,
        plan: Plan,
        warnings: list[str],
        video: EncodedVideo,
        control: Control,
        storage: Storage,
    ) -> VideoResult:
        """Store the file and the record by which the job id finds it again. Returns the URL."""
        control.progress("publish", 0, 1)
        price, name = self._price(order), choice.spec.name
        record = {"cost": str(price), "seed": plan.seed, "model": name, "warnings": warnings}
        url = storage.put(video.path, control.job_id, record, control)
        control.enter(None)
        return VideoResult(
            video_url=url,
            cost=price,
            seed=plan.seed,
            warnings=tuple(warnings),
            model=name,
            stage_seconds=dict(control.stage_seconds),
        )

    # --- what the line is told -------------------------------------------------------------------

    def _counted(self, control: Control) -> AbstractContextManager[None]:
        """Refuse a job that has crashed workers before."""
        return self._crashes.counting(control.job_id)

    def _how(self, model: Model) -> str:
        """Everything besides the size that decides how long a frame takes."""
        made = (self.postprocess.interpolation, self.postprocess.upscaling)
        return estimates.kind_of_work(model.spec, model.recipe, self.pool.gpu, *made)

    def _price(self, order: Order) -> Decimal:
        return cost(order.size, order.duration, self.settings.prices, order.task)

    def _comment(self, choice: Choice, plan: Plan) -> str:
        """The comment in the mp4's metadata, or None if WAN_METADATA is off."""
        if not self.settings.metadata:
            return ""
        spec = choice.spec
        task = "" if spec.task == "image-to-video" else f" for {spec.task}"
        made_by = f"model {spec.name}{task}; seed {plan.seed}; wan_engine {VERSION}"
        return f"AI-generated video; {made_by}"

    def _fetch_limits(self, max_bytes: int) -> FetchLimits:
        return FetchLimits(
            max_bytes=max_bytes,
            seconds=self.settings.fetch_seconds,
            allow_private=self.settings.allow_private_urls,
        )

    def _warnings(
        self, order: Order, choice: Choice, plan: Plan, media: Media, expansion: Expansion
    ) -> list[str]:
        spec = choice.spec
        warnings = self.postprocess.warnings(plan)
        if spec.caveat:
            warnings.append(f"{spec.name} is {spec.caveat}")
        if order.check_content:
            warnings += self.safety.warnings()
        if expansion.warning:
            warnings.append(expansion.warning)
        callers = expansion.in_the_callers_words
        limit = self._token_limits[spec.task]
        warnings += limit.warnings(order, spec, self.settings, whole=callers)
        if media.audio and media.audio.seconds < _SHORT_AUDIO_SECONDS:
            warnings.append(f"The audio is only {media.audio.seconds:.1f} seconds long")
        return [*warnings, *media.warnings, *choice.warnings]

    def _log_summary(
        self, order: Order, choice: Choice, plan: Plan, video: EncodedVideo, control: Control
    ) -> None:
        stages = " ".join(f"{name} {took:.1f}s" for name, took in control.stage_seconds.items())
        log.info(
            "job %s: %s %ds %dx%d seed %d model %s (%s), attention %s, %d frames at %d fps%s, "
            "%d bytes; %s; peak memory %s",
            control.job_id,
            order.size,
            order.duration,
            plan.width,
            plan.height,
            plan.seed,
            choice.spec.name,
            "; ".join((f"{choice.spec.task}: {choice.reason}", *choice.undone)),
            getattr(self.pool.models[choice.spec.task].family, "attention", "its own"),
            video.frames,
            plan.fps,
            "".join(f", {part}" for part in self.postprocess.describe(plan)),
            video.bytes,
            stages,
            ", ".join(f"{where} {used} MB" for where, used in memory.peaks().items()),
        )


def _settled(request: Request | Order) -> Order:
    """The order with a seed, chosen at random if the request leaves it open."""
    order = request if isinstance(request, Order) else request.order()
    return order if order.seed >= 0 else replace(order, seed=secrets.randbelow(SEED_MAX + 1))


def _from_record(url: str, record: Mapping[str, Any]) -> VideoResult:
    return VideoResult(
        video_url=url,
        cost=Decimal(record["cost"]),
        seed=record["seed"],
        warnings=tuple(record["warnings"]),
        model=record["model"],
    )
