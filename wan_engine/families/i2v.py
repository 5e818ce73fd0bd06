"""Runs Wan image-to-video on the stock diffusers pipeline: A14B with two experts (or one, as in
Wan2.1), and TI2V-5B with `expand_timesteps`.

This module works with latents, schedules and experts. It knows nothing about requests, clips, or
files other than weights.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from PIL import Image

from wan_engine.catalog import ModelSpec
from wan_engine.errors import CompileFailed, OutOfMemory
from wan_engine.families import previews
from wan_engine.families.base import refuse_others, stream_decode, to_frames
from wan_engine.families.continuation import ContinuingPipeline, Start, latent_moments
from wan_engine.families.loading import load_pipeline
from wan_engine.families.lora_swap import LoraSwap
from wan_engine.families.placement import able, attention_of, run_eagerly
from wan_engine.families.prompt_embeddings import PromptEncoder
from wan_engine.media.previews import MOST_FRAMES
from wan_engine.runtime.compiler import failed_in_compiled_code, reason
from wan_engine.runtime.faults import is_out_of_memory
from wan_engine.runtime.finite import require_finite
from wan_engine.runtime.recipes import Recipe
from wan_engine.schema import (
    Carry,
    Clip,
    Condition,
    FirstPicture,
    Frames,
    LastPicture,
    OnBytes,
    SegmentInput,
)
from wan_engine.weights import LocatedLora
from wan_engine.weights.files import read_json
from wan_engine.weights.lora_folder import ChosenLora

log = logging.getLogger(__name__)

_TRAIN_TIMESTEPS = 1000
_AREA_480P = round(832 * 480 * 1.05)  # a render may exceed its area by this much (plan.py)
_PARTS = ("text_encoder", "audio_encoder", "transformer", "transformer_2")
_ENCODED_AGAIN = ("last_frames", "motion_frames")


class DistilledEulerScheduler(FlowMatchEulerDiscreteScheduler):
    """The schedule that the lightx2v four-step weights were distilled on.

    Before the shift, sigmas are 1, 1 - 1/n, ... 1/n; four steps at shift 5 sample the timesteps
    1000, 937.5, 833.3 and 625 (lightx2v `schedulers/wan/step_distill/scheduler.py`). The stock
    scheduler spaces them over [1, sigma_min], so its last two differ greatly.
    """

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, **ignored: Any
    ) -> None:
        assert num_inference_steps is not None
        sigmas = [1 - step / num_inference_steps for step in range(num_inference_steps)]
        super().set_timesteps(sigmas=sigmas, device=device)
        self.velocity: torch.Tensor | None = None

    def step(self, model_output: torch.Tensor, *given: Any, **options: Any) -> Any:
        """The stock step. It keeps the model's output for `previews.estimate`."""
        self.velocity = model_output
        return super().step(model_output, *given, **options)


def make_scheduler(spec: ModelSpec, area: int | None = None) -> SchedulerMixin:
    """The scheduler of a catalogue row, for a render of `area` pixels. Converted repositories have
    a wrong `flow_shift`."""
    shift = flow_shift(spec, area)
    if spec.sampler == "distilled-euler":
        return DistilledEulerScheduler(shift=shift, num_train_timesteps=_TRAIN_TIMESTEPS)
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        num_train_timesteps=_TRAIN_TIMESTEPS,
        flow_shift=shift,
    )


def flow_shift(spec: ModelSpec, area: int | None = None) -> float:
    """The shift of the schedule towards high noise. It is smaller for a small render if the row has
    a separate shift for it (`flow_shift_480p`; 3 instead of 5 by Wan-Video/Wan2.1's README).
    Distilled weights support only the shift that they were distilled on."""
    small = spec.flow_shift_480p
    if small is None or area is None or area > _AREA_480P:
        return spec.flow_shift
    return small


class ImageToVideo:
    """A loaded pipeline with the settings of its row. Implements `Family`.

    A family on another Wan pipeline is a subclass with its own `pipeline_class`, `_given` and
    `_of_the_clip`. `recipe` is how it runs: the requested recipe, as far as this device supports
    it.
    """

    pipeline_class: Any = ContinuingPipeline
    warm_frames = 9  # three latent frames: the VAE treats first, second and later ones differently
    swap: LoraSwap | None = None

    def __init__(self, pipeline: Any, spec: ModelSpec, recipe: Recipe) -> None:
        self.spec = spec
        self.recipe = recipe
        self.pipeline = pipeline
        self.pipeline.scheduler = make_scheduler(spec)
        self.pipeline.set_progress_bar_config(disable=True)
        self._compiled = recipe.compiled
        self._offloaded = recipe.offload in ("model", "layer")
        device = torch.device(recipe.device)
        moved = recipe.text_encoder == "moved"
        self._texts = PromptEncoder(pipeline, device, tokens=spec.text_tokens, moved=moved)
        self._decoder = pipeline.vae
        if recipe.decode_dtype != "float32" and not self._offloaded:
            self._decoder = _decoder_only(pipeline.vae, getattr(torch, recipe.decode_dtype))
        self._colours: previews.LatentColours | None = None

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        folder: Path,
        recipe: Recipe,
        loras: tuple[LocatedLora, ...] = (),
        on_bytes: OnBytes = lambda _done, _all: None,
    ) -> ImageToVideo:
        """Load the weights of a folder in diffusers layout, one network at a time. `on_bytes` gets
        the bytes loaded so far and the total; an error that it raises stops the load."""
        recipe = cls._able(recipe, folder)
        try:
            pipeline = load_pipeline(folder, recipe, loras, on_bytes, cls.pipeline_class)
            family = cls(pipeline, spec, recipe)
            family.swap = LoraSwap(pipeline, folder, recipe, loras)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise _out_of_memory(spec) from error
        log.info("attention: %s", family.attention)
        return family

    @classmethod
    def _able(cls, recipe: Recipe, folder: Path) -> Recipe:
        """The part of the recipe that this device and this family support."""
        return able(recipe, read_json(folder / "transformer" / "config.json"))

    def render(self, segment: SegmentInput, on_step: Callable[[int], None]) -> Clip:
        """See `Family.render`."""
        refuse_others(self.spec, segment)
        latents = self.denoise(segment, on_step)
        return Clip(self.decode(latents, segment.carry, continued=segment.continued))

    def denoise(self, segment: SegmentInput, on_step: Callable[[int], None]) -> torch.Tensor:
        """Denoise a segment to normalised latents [1, c, t, h, w], c = 16 or 48, t = (frames - 1) /
        4 + 1.

        Raises `NotFinite` after the step or part with NaN or infinity, and `CompileFailed`.
        """
        spec, two_experts = self.spec, self.pipeline.config.boundary_ratio is not None
        self.pipeline.scheduler = make_scheduler(spec, segment.width * segment.height)
        done = 0

        def step_ended(
            _pipe: Any, index: int, time: torch.Tensor, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            nonlocal done
            done = index + 1
            require_finite(
                tensors["latents"], f"step {done} of {spec.steps} by {self._expert_at(time)}"
            )
            on_step(done)
            self._offer_preview(segment, done, tensors["latents"])
            return tensors

        self._offer_preview(segment, done)
        # A step of a large model takes long, and so do the encoders before it.
        parts = [getattr(self.pipeline, name, None) for name in _PARTS]
        hooks = [
            part.register_forward_pre_hook(lambda *_: on_step(done))
            for part in (*parts, self.pipeline.vae.encoder.conv_out)  # once per latent
            if part is not None
        ]
        try:
            guided = spec.guidance_scale > 1
            output = self.pipeline(
                **self._given(segment),
                prompt_embeds=self._texts.embed(segment.prompt),
                negative_prompt_embeds=(
                    self._texts.embed(segment.negative_prompt) if guided else None
                ),
                width=segment.width,
                height=segment.height,
                num_frames=segment.frames,
                num_inference_steps=spec.steps,
                guidance_scale=spec.guidance_scale,
                guidance_scale_2=spec.guidance_scale_2 if two_experts else None,
                # On the CPU, so that a seed gives the same noise on every device.
                generator=torch.Generator().manual_seed(segment.seed),
                output_type="latent",
                callback_on_step_end=step_ended,
            )
        except Exception as error:
            if is_out_of_memory(error):
                raise _out_of_memory(spec) from error
            if not self._compiled or not failed_in_compiled_code(error):
                raise
            raise CompileFailed(reason(error)) from error
        finally:
            for hook in hooks:
                hook.remove()
            self._forget()
            self.pipeline.maybe_free_model_hooks()
        latents = self._of_the_clip(output.frames, segment)
        # The known latents of the clip are inserted after the last step.
        require_finite(latents, "the condition")
        if self._latents_handed_on:
            segment.carry.latents = latents[:, :, -self._latents_handed_on :].clone()
        return latents

    def _offer_preview(
        self, segment: SegmentInput, done: int, latents: torch.Tensor | None = None
    ) -> None:
        """Offer a preview of `latents` after a step. Before the first step, prepare for it."""
        if segment.on_preview is None:
            return
        # Between steps, an encoder that is offloaded would take the place of an expert.
        if self._colours is None and (latents is None or not self._offloaded):
            segment.on_preview(done, self._learn_colours)
        if latents is not None and (colours := self._colours) is not None:
            segment.on_preview(done, lambda: colours.of(self._shown(latents, segment)))

    def _learn_colours(self) -> None:
        self._colours = previews.LatentColours.learnt(self.pipeline.vae)
        self.pipeline.maybe_free_model_hooks()

    def _shown(self, latents: torch.Tensor, segment: SegmentInput) -> torch.Tensor:
        """The latents that a preview shows, without those of the previous segment."""
        clean = previews.estimate(self.pipeline.scheduler, latents)
        new = self._of_the_clip(clean, segment)[:, :, max(1, self._latents_handed_on) :]
        return previews.evenly(new if new.shape[2] else clean, MOST_FRAMES)

    @property
    def attention(self) -> str:
        """The attention kernel in use, in words for the log."""
        return attention_of(self.recipe, len(self.pipeline.transformer.blocks))

    def warm_up(
        self, width: int, height: int, on_step: Callable[[int], None] = lambda _step: None
    ) -> None:
        """Run everything that a clip of this size uses, briefly: the encoders, a step of each
        expert, the decoder of the last segment. An error raised by `on_step` stops it."""
        spec = self.spec
        # A schedule of two steps runs each expert once: at full noise and in the middle.
        self.spec = replace(spec, steps=2, guidance_scale=1.0, guidance_scale_2=1.0)
        try:
            with self._warm_conditions(width, height) as given:
                asked = SegmentInput("", "", given, width, height, self.warm_frames, seed=0)
                latents = self.denoise(asked, on_step)
            for _ in self.decode(latents):
                pass
        finally:
            self.spec = spec

    @contextmanager
    def _warm_conditions(self, width: int, height: int) -> Iterator[tuple[Condition, ...]]:
        """The conditions of the warm-up."""
        yield (FirstPicture(Image.new("RGB", (width, height))),)

    def run_eagerly(self) -> None:
        """Stop using compiled code."""
        run_eagerly(self.pipeline)
        self._compiled = False

    @property
    def loras(self) -> tuple[ChosenLora, ...] | None:
        """See `TakesLoras`."""
        if self.swap is None:
            return ()
        return self.swap.present if self.swap.is_sound else None

    def set_loras(self, loras: Sequence[ChosenLora], on_bytes: OnBytes) -> None:
        """See `TakesLoras`."""
        assert self.swap is not None, "load has made it"
        try:
            self.swap.set(loras, on_bytes)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise _out_of_memory(self.spec) from error

    def move(self, device: str) -> None:
        """Move all weights to `device`. Cached embeddings stay where they are."""
        self.pipeline.to(device)
        if self._decoder is not self.pipeline.vae:
            self._decoder.to(device)

    def _expert_at(self, timestep: torch.Tensor) -> str:
        """The transformer that runs at `timestep`, chosen as in the pipeline's loop."""
        boundary = self.pipeline.config.boundary_ratio
        if boundary is None:
            return "the transformer"
        high = timestep >= boundary * self.pipeline.scheduler.config.num_train_timesteps
        return "the high-noise expert" if high else "the low-noise expert"

    @property
    def _latents_handed_on(self) -> int:
        """The number of latents at a segment's end that the next segment gets."""
        if self.spec.continuation == "latents":
            stride: int = self.pipeline.vae_scale_factor_temporal
            return (self.spec.overlap_frames - 1) // stride + 1
        return 1 if self.spec.continuation == "svi" else 0

    def _given(self, segment: SegmentInput) -> dict[str, Any]:
        """The pipeline's arguments other than text, sizes and schedule. Sets the remaining inputs
        on the pipeline."""
        start = self.pipeline.start = self._start(segment.carry)
        first = segment.find(FirstPicture)
        assert first is not None, "render has refused a segment without a first picture"
        image = first.image
        if start is not None and start.frames is not None and not start.anchored:
            image = Image.fromarray(start.frames[0])  # the input of a model's image encoder
        last = segment.find(LastPicture)
        return {"image": image, "last_image": last.image if last else None}

    def _forget(self) -> None:
        """Remove the inputs that `_given` has set."""
        self.pipeline.start = None

    def _of_the_clip(self, latents: torch.Tensor, segment: SegmentInput) -> torch.Tensor:
        """The part of the pipeline's latents that is frames."""
        return latents

    def _start(self, carry: Carry) -> Start | None:
        if self.spec.continuation == "svi":
            # The first segment as well, with the frames of a clip that is continued.
            frames = carry.frames if carry.latents is None else None
            return Start(frames=frames, latents=carry.latents, anchored=True)
        if self.spec.continuation == "latents" and carry.latents is not None:
            return Start(latents=carry.latents)
        return None if carry.frames is None else Start(frames=carry.frames)

    def decode(
        self, latents: torch.Tensor, carry: Carry | None = None, *, continued: bool = False
    ) -> Generator[Frames, None, None]:
        """Frames, uint8 [n, height, width, 3], n = 1 and then 4 for each latent frame.

        They are decoded in the recipe's `decode_dtype`, or in float32 if the next segment encodes
        the last of them again.

        If segments pass on latents, a later segment yields the frames of `carry` first. The decoder
        then continues with the new latents as if it had never stopped. Its features (6.4 GB in
        float32 for TI2V-5B at 1280x704) stay on the device if the networks do.
        """
        memory = None
        if carry is not None and self.spec.continuation == "latents":
            memory = carry.decoder
            if memory and carry.frames is not None:
                latents = latents[:, :, self._latents_handed_on :]
                yield carry.frames
        encoded_again = continued and self.spec.continuation in _ENCODED_AGAIN
        vae = self.pipeline.vae if encoded_again else self._decoder
        try:
            if hook := getattr(vae, "_hf_hook", None):
                hook.pre_forward(vae)  # offloaded: its submodules are called without the hook
            latents = latents.to(vae.device, vae.dtype)
            mean, std = latent_moments(vae, latents)
            if memory:
                memory[:] = _moved(memory, vae.device)
            kept = carry if continued else None
            yield from to_frames(self._samples(vae, latents * std + mean, memory, kept))
            if memory and self._offloaded:
                memory[:] = _moved(memory, "cpu")
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise _out_of_memory(self.spec) from error
        finally:
            self.pipeline.maybe_free_model_hooks()

    def _samples(
        self, vae: Any, latents: torch.Tensor, memory: list[Any] | None, kept: Carry | None
    ) -> Generator[torch.Tensor, None, None]:
        """Like `stream_decode`. `kept` is what the next segment gets, if there is one."""
        return stream_decode(vae, latents, memory)


def _moved(memory: list[Any], device: Any) -> list[Any]:
    """The decoder's features on `device`. Some entries are markers instead of tensors."""
    return [item.to(device) if isinstance(item, torch.Tensor) else item for item in memory]


def _decoder_only(vae: Any, dtype: torch.dtype) -> Any:
    """A copy of the VAE that decodes in `dtype`, without the encoder's weights."""
    encoder, vae.encoder = vae.encoder, None
    try:
        copied = copy.deepcopy(vae)
    finally:
        vae.encoder = encoder
    return copied.to(dtype)


def _out_of_memory(spec: ModelSpec) -> OutOfMemory:
    return OutOfMemory(f"The worker has too little GPU memory for {spec.name}")
