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
from wan_engine.errors import InvalidRequest
from wan_engine.media.postprocess import Postprocess
from wan_engine.media.previews import Previews
from wan_engine.media.video import EncodeOptions
from wan_engine.plan import PlanLimits, described, make_plan
from wan_engine.pool import Pool
from wan_engine.prepare import Preparation, Prepared
from wan_engine.prompts import open_expander
from wan_engine.prompts.token_limit import TokenLimit
from wan_engine.render import RenderOptions, render, with_made_sound
from wan_engine.runtime import estimates, memory
from wan_engine.runtime.recipes import Recipe
from wan_engine.runtime.scratch import clear_abandoned, job_folder
from wan_engine.runtime.startup import Startup
from wan_engine.runtime.time_limits import allow_steps, set_limits, slowness
from wan_engine.safety import open_safety
from wan_engine.schema import (
    SEED_MAX,
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
            counted = self._counted(control, render_alone=False)
            with counted, job_folder(self.settings) as folder:
                prepare = partial(self.prepare, order, choice, folder, control)
                prepared = self.pool.run(model, prepare, beside=control)
                media, expansion = prepared.media, prepared.expansion
                plan = self.plan(order, choice, expansion.script, media)
                how = self._how(choice, plan)
                estimates.refuse_if_too_long(self.settings, order, plan, how, control)
                warnings = self._warnings(choice, plan, prepared)
                video = self.render(order, choice, plan, media, folder, control)
                warnings += video.warnings
                result = self.publish(order, plan, warnings, video, control, storage)
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
            prepared = self.prepare(order, choice, folder, control or Control())
            plan = self.plan(order, choice, prepared.expansion.script, prepared.media)
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

    def prepare(self, order: Order, choice: Choice, folder: Path, control: Control) -> Prepared:
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

        def load_sound() -> SoundFamily:
            return cast("SoundFamily", self.pool.load(self.pool.models["sound-for-video"], control))

        def once() -> EncodedVideo:
            slowest = max(models.values(), key=lambda one: slowness(one.spec, one.recipe))
            how = self._how(choice, plan)
            set_limits(control, plan, self.settings, slowest.spec, slowest.recipe, how)
            control.enter("load")
            self._begin()
            load(choice.spec.task)  # before later stages wait for frames
            return render(load, plan, media, options, folder, control)

        with self.pool.device(control), self._counted(control, render_alone=True):
            video = self.pool.run(first, once)
            if choice.sound_spec is None:
                return video
            model = self.pool.models["sound-for-video"]
            allow_steps(control, self.settings, model.spec, model.recipe)
            run, device = partial(self.pool.run, model), self.settings.device
            return with_made_sound(load_sound, run, plan, media, video, control, device)

    def publish(
        self,
        order: Order,
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

    def _counted(self, control: Control, *, render_alone: bool) -> AbstractContextManager[None]:
        """Refuse a job that has crashed workers before. The count covers the whole job, or its
        render alone if jobs overlap, so that a waiting job is not blamed for the other one."""
        if render_alone != self.settings.prefetch:
            return nullcontext()
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

    def _warnings(self, choice: Choice, plan: Plan, prepared: Prepared) -> list[str]:
        rows = [self.pool.models[task].spec for task in plan.tasks]
        if choice.sound_spec is not None:
            rows.append(choice.sound_spec)
        return [
            *self.postprocess.warnings(plan),
            *(f"{row.name} is {row.caveat}" for row in rows if row.caveat),
            *prepared.warnings,
            *choice.warnings,
        ]

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
            "; ".join(choice.reasons),
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
