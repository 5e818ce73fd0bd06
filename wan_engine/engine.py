"""Turns a request into a stored mp4: prepare, plan, render, publish."""

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
from typing import TYPE_CHECKING, Any, cast

from wan_engine import weights
from wan_engine.catalog import ModelSpec
from wan_engine.catalog.with_settings import negative_prompt
from wan_engine.choice import Choice, choose, without_later_model
from wan_engine.control import Control
from wan_engine.errors import (
    Cancelled,
    ConfigurationError,
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
)
from wan_engine.media.made_sound import make_sound
from wan_engine.media.postprocess import Postprocess
from wan_engine.media.previews import Previews
from wan_engine.media.soundtrack import after
from wan_engine.media.video import EncodeOptions, Sound, add_sound
from wan_engine.plan import PlanLimits, described, make_plan
from wan_engine.pool import Pool
from wan_engine.prepare import Preparation
from wan_engine.prompts import Expansion, open_expander
from wan_engine.prompts.token_limit import TokenLimit
from wan_engine.render import RenderOptions, render
from wan_engine.runtime import estimates, memory
from wan_engine.runtime.faults import device_answers, is_device_fault
from wan_engine.runtime.recipes import Recipe
from wan_engine.runtime.scratch import clear_abandoned, job_folder
from wan_engine.runtime.startup import Startup
from wan_engine.runtime.time_limits import allow_steps, set_limits, slowness
from wan_engine.safety import open_safety
from wan_engine.schema import (
    SEED_MAX,
    AudioTrack,
    EncodedVideo,
    Media,
    Order,
    Plan,
    Request,
    Script,
    Task,
    VideoResult,
)
from wan_engine.schema.pricing import cost
from wan_engine.settings import VERSION, Settings
from wan_engine.storage import CrashCounts, Storage, open_storage
from wan_engine.weights.lora_folder import ChosenLora, LoraFolder

if TYPE_CHECKING:
    from wan_engine.families.base import Family, SoundFamily

log = logging.getLogger(__name__)

_NO_SOUND = "The sound could not be made: the clip has a silent track"
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
        self.lora_folder = LoraFolder(settings)
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

    # --- start -----------------------------------------------------------------------------------

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

    # --- jobs ------------------------------------------------------------------------------------

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
            log.info("job %s was finished before: returning its clip", control.job_id)
            return _from_record(url, record)
        order = _settled(request)
        choice = self.choose(order)
        model = self.pool.models[choice.spec.task]
        with memory.measured():
            # The count covers the whole job, or its render alone if jobs overlap, so that a
            # waiting job is not blamed for the other one.
            counted = nullcontext() if self.settings.prefetch else self._counted(control)
            with counted, job_folder(self.settings) as folder:
                prepare = partial(self.prepare, order, choice, folder, control)
                media, expansion = self.pool.run(model, prepare, beside=control)
                plan = self.plan(order, choice, expansion.script, media)
                how = self._how(choice, plan)
                estimates.refuse_if_too_long(self.settings, order, plan, how, control)
                warnings = self._warnings(order, choice, plan, media, expansion)
                video = self.render(order, choice, plan, media, folder, control)
                warnings += video.warnings
                result = self.publish(order, choice, plan, warnings, video, control, storage)
            self._log_summary(order, choice, plan, video, control)
        if how == self._how(choice, plan):  # otherwise the clip was rendered twice
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
        return described(
            plan,
            choice.spec,
            chosen=choice.described(),
            names={task: row.name for task, row in self.pool.rows.items()},
            made_by=", ".join(self.postprocess.describe(plan)),
            loras=order.loras,
            seconds=estimates.expected_seconds(self.settings, plan, self._how(choice, plan)),
            price=self._price(order),
        )

    def choose(self, order: Order) -> Choice:
        """The model for `order`. Raises `NotServed`, and `InvalidRequest` for LoRA files that are
        not for it. If they are not for the model of later shots, the first shot's makes those."""
        choice = choose(order, self.pool.rows, generate_audio=self.settings.generate_audio)
        self._loras(order, choice.spec.task)
        if choice.later_spec is not None:
            try:
                self._loras(order, choice.later_spec.task)
            except InvalidRequest:
                why = f"the LoRA files do not fit {choice.later_spec.name}"
                return without_later_model(choice, why)
        return choice

    def _loras(self, order: Order, task: Task) -> tuple[ChosenLora, ...]:
        return self.lora_folder.chosen(order.loras, self.pool.models[task].located)

    def prepare(
        self, order: Order, choice: Choice, folder: Path, control: Control
    ) -> tuple[Media, Expansion]:
        """Fetch and check the media of the order, and expand the prompt if asked. Does not hold the
        device of the models."""
        preparation = Preparation(self.settings, self.safety, self.expander, self._token_limits)
        return preparation.of(order, choice, folder, control)

    def plan(self, order: Order, choice: Choice, script: Script, media: Media) -> Plan:
        """Compute every number of the clip. `order.seed` must be chosen (not -1)."""
        return make_plan(order, script, media, choice.spec, self.limits, choice.later_spec)

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
        models = {task: self.pool.models[task] for task in plan.tasks}
        first = models[choice.spec.task]
        loras = {task: self._loras(order, task) for task in models}
        passes = partial(self.safety.passes, control=control)
        comment = self._comment(plan, order)
        options = RenderOptions(
            negative_prompt=partial(negative_prompt, order.negative_prompt, settings=self.settings),
            track=choice.track,
            made_here=choice.sound_spec is None,
            watch=self.safety.watch if order.check_content else None,
            postprocess=self.postprocess,
            encoding=EncodeOptions(self.settings.crf, self.settings.preset, comment),
            previews=Previews(control, passes if order.check_content else None),
        )
        control.enter("queue")

        def load(task: Task) -> Family:
            if not models[task].is_ready(loras[task]):
                control.enter("load")
            return self.pool.load(models[task], control, loras[task])

        def once() -> EncodedVideo:
            slowest = max(models.values(), key=lambda one: slowness(one.spec, one.recipe))
            how = self._how(choice, plan)
            set_limits(control, plan, self.settings, slowest.spec, slowest.recipe, how)
            control.enter("load")
            self._begin()
            load(choice.spec.task)  # before later stages wait for frames
            return render(load, plan, media, options, folder, control)

        counted = self._counted(control) if self.settings.prefetch else nullcontext()
        with self.pool.device(control), counted:
            video = self.pool.run(first, once)
            return self._with_sound(choice, plan, media, video, control)

    def _with_sound(
        self, choice: Choice, plan: Plan, media: Media, video: EncodedVideo, control: Control
    ) -> EncodedVideo:
        """Return the clip with the sound that a model makes for its frames, after the sound of the
        clip that it continues. If the model fails, the clip gets a silent track and a warning,
        because the frames are already rendered."""
        if choice.sound_spec is None:
            return video
        first = media.first_clip.sound if media.first_clip and plan.given_frames else None
        model = self.pool.models["sound-for-video"]
        allow_steps(control, self.settings, model.spec, model.recipe)

        def once() -> AudioTrack:
            control.enter("load")
            family = cast("SoundFamily", self.pool.load(model, control))
            made = make_sound(family.hear, family.spec, plan, video, control)
            if first is None:
                return made
            path = video.path.with_name("sound.wav")
            return after(first, made, plan.given_frames / plan.fps, path)

        try:
            made: Sound = self.pool.run(model, once)
        except (Cancelled, DeadlineExceeded, ConfigurationError):
            raise
        except Exception as error:
            if is_device_fault(error) and not device_answers(self.settings.device):
                raise  # no later job can work in this process
            bug = not isinstance(error, EngineError)
            log.error(
                "the sound of job %s could not be made: %r", control.job_id, error, exc_info=bug
            )
            made = first or "silence"
            video = replace(video, warnings=(*video.warnings, _NO_SOUND))
        with_sound = add_sound(video, made, plan, control)
        return replace(with_sound, warnings=video.warnings)

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
        price, name = self._price(order), " and ".join(self._names(plan))
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

    # --- helpers ---------------------------------------------------------------------------------

    def _counted(self, control: Control) -> AbstractContextManager[None]:
        """Refuse a job that has crashed workers before."""
        return self._crashes.counting(control.job_id)

    def _how(self, choice: Choice, plan: Plan) -> str:
        """Return everything besides the size that decides how long a frame takes."""
        made = (self.postprocess.interpolation, self.postprocess.upscaling)
        models = [self.pool.models[task] for task in plan.tasks]
        if choice.sound_spec is not None:
            models.append(self.pool.models["sound-for-video"])
        kinds = (
            estimates.kind_of_work(one.spec, one.recipe, self.pool.gpu, *made) for one in models
        )
        return "; ".join(kinds)

    def _names(self, plan: Plan) -> list[str]:
        """Return the names of the models that make the clip."""
        return [self.pool.models[task].spec.name for task in plan.tasks]

    def _price(self, order: Order) -> Decimal:
        return cost(order.size, order.duration, self.settings.prices, order.task)

    def _comment(self, plan: Plan, order: Order) -> str:
        """The comment in the mp4's metadata, or None if WAN_METADATA is off."""
        if not self.settings.metadata:
            return ""
        tasks = ["" if task == "image-to-video" else f" for {task}" for task in plan.tasks]
        named = [f"{name}{task}" for name, task in zip(self._names(plan), tasks, strict=True)]
        loras = f"LoRA {_named(order)}; " if order.loras else ""
        made_by = f"model {', '.join(named)}; {loras}seed {plan.seed}; wan_engine {VERSION}"
        return f"AI-generated video; {made_by}"

    def _warnings(
        self, order: Order, choice: Choice, plan: Plan, media: Media, expansion: Expansion
    ) -> list[str]:
        spec = choice.spec
        warnings = self.postprocess.warnings(plan)
        rows = [self.pool.models[task].spec for task in plan.tasks]
        if choice.sound_spec is not None:
            rows.append(choice.sound_spec)
        warnings += [f"{row.name} is {row.caveat}" for row in rows if row.caveat]
        if order.check_content:
            warnings += self.safety.warnings()
        if expansion.warning:
            warnings.append(expansion.warning)
        callers = expansion.in_the_callers_words
        limit = self._token_limits[spec.task]
        warnings += limit.warnings(order, spec, self.settings, as_written=callers)
        if media.audio and media.audio.seconds < _SHORT_AUDIO_SECONDS:
            warnings.append(f"The audio is only {media.audio.seconds:.1f} seconds long")
        return [*warnings, *media.warnings, *choice.warnings]

    def _reasons(self, choice: Choice) -> tuple[str, ...]:
        later = (f"later shots: {choice.later.reason}",) if choice.later else ()
        return f"{choice.spec.task}: {choice.reason}", *later, *choice.warnings

    def _log_summary(
        self, order: Order, choice: Choice, plan: Plan, video: EncodedVideo, control: Control
    ) -> None:
        stages = " ".join(f"{name} {took:.1f}s" for name, took in control.stage_seconds.items())
        log.info(
            "job %s: %s %ds %dx%d seed %d model %s (%s)%s, attention %s, %d frames at %d fps%s, "
            "%d bytes; %s; peak memory %s",
            control.job_id,
            order.size,
            order.duration,
            plan.width,
            plan.height,
            plan.seed,
            " and ".join(self._names(plan)),
            "; ".join(self._reasons(choice)),
            f", LoRA {_named(order)}" if order.loras else "",
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


def _named(order: Order) -> str:
    """The LoRA files of the order, in words."""
    return ", ".join(map(str, order.loras))


def _from_record(url: str, record: Mapping[str, Any]) -> VideoResult:
    return VideoResult(
        video_url=url,
        cost=Decimal(record["cost"]),
        seed=record["seed"],
        warnings=tuple(record["warnings"]),
        model=record["model"],
    )
