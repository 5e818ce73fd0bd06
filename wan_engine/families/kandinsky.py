"""Makes the sound of finished frames with the stock Kandinsky 6 pipeline, which makes picture and
sound together. The picture is fixed, so the pipeline samples only the sound.

After each step the picture's latents are set to the finished clip at the next noise level, (1 -
sigma) clean + sigma noise, with the initial noise. The last level is 0, so the final picture is the
given one and is not decoded again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import Kandinsky6TI2VAPipeline
from transformers import AutoTokenizer

from wan_engine.catalog import ModelSpec
from wan_engine.errors import OutOfMemory
from wan_engine.families.loading import load_networks
from wan_engine.families.placement import EXACT_BESIDE_8_BITS
from wan_engine.families.prompt_embeddings import in_place
from wan_engine.runtime.faults import is_out_of_memory
from wan_engine.runtime.finite import require_finite
from wan_engine.runtime.recipes import Recipe
from wan_engine.schema import Frames, OnBytes, SoundInput, Waveform
from wan_engine.weights import LocatedLora
from wan_engine.weights.files import read_json

log = logging.getLogger(__name__)

_WARM_FRAMES = 9
_SAYS = r"(?:say|ask|whisper|shout|sing|scream|yell|repl|answer|exclaim|announce|speak|mutter)"
_SPOKEN = re.compile(rf'(\b{_SAYS}\w*\b[^"“”.]{{0,30}})["“]([^"“”]{{1,500}})["”]', re.IGNORECASE)
_QUOTED = re.compile(r'["“]([^"“”]{1,500})["”]')


class SoundPipeline(Kandinsky6TI2VAPipeline):
    """A `Kandinsky6TI2VAPipeline` that embeds a prompt once for all windows of a clip. The text
    encoder stays where the recipe puts it.

    The stock pipeline accepts prepared embeddings, but then drops their padding mask. So this class
    embeds the prompt within the stock call.
    """

    moved = False
    """Whether the text encoder waits in host memory."""

    _last: tuple[str, tuple[Any, ...]] | None = None

    def encode_prompt(self, prompt: Any, *args: Any, **options: Any) -> tuple[Any, ...]:
        """Embed one prompt, as the stock method does."""
        text = repr(prompt)
        if self._last is None or self._last[0] != text:
            device = torch.device(options["device"])
            with in_place(self.text_encoder, device, moved=self.moved):
                made: tuple[Any, ...] = super().encode_prompt(prompt, *args, **options)
            require_finite(made[0], "the text encoder")
            self._last = text, made
        return self._last[1]


class SoundForVideo:
    """A loaded pipeline with the settings of its row. Implements `SoundFamily`."""

    def __init__(self, pipeline: SoundPipeline, spec: ModelSpec, recipe: Recipe) -> None:
        self.spec = spec
        self.recipe = recipe
        self.pipeline: Any = pipeline
        self.pipeline.moved = recipe.text_encoder == "moved"
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.vae.enable_tiling()  # a window of 864x480 would take 20 GB without tiles
        self._device = torch.device(recipe.device)

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        folder: Path,
        recipe: Recipe,
        loras: tuple[LocatedLora, ...] = (),
        on_bytes: OnBytes = lambda _done, _all: None,
    ) -> SoundForVideo:
        """Load the weights from a folder in diffusers layout, one network at a time."""
        exact = EXACT_BESIDE_8_BITS if recipe.attention == "float8" else recipe.attention
        # Its blocks are not Wan's, so none of them is converted, compiled or skipped.
        recipe = replace(recipe, float8=False, compiled=False, attention=exact, step_cache=None)

        def assembled(networks: Mapping[str, Any]) -> Any:
            return SoundPipeline(**networks, **_small_parts(folder))

        with _told_of_memory(spec):
            pipeline = load_networks(folder, recipe, assembled, on_bytes=on_bytes)
            return cls(pipeline, spec, recipe)

    def hear(self, window: SoundInput, on_step: Callable[[int], None]) -> Waveform:
        """See `SoundFamily.hear`. 44.1 kHz, mono."""
        with _told_of_memory(self.spec), torch.inference_mode(False), torch.no_grad():
            try:
                return self._heard(window, on_step)
            finally:
                self.pipeline.maybe_free_model_hooks()

    def _heard(self, window: SoundInput, on_step: Callable[[int], None]) -> Waveform:
        pipeline, spec, done = self.pipeline, self.spec, 0
        # The noise is made on the CPU, so that a seed gives the same noise on every device.
        generator = torch.Generator().manual_seed(window.seed)

        def step_ended(
            _pipe: Any, index: int, _time: torch.Tensor, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            nonlocal done
            done = index + 1
            require_finite(tensors["audio_latents"], f"step {done} of {spec.steps} of the sound")
            on_step(done)
            sigma = pipeline.scheduler.sigmas[done].to(clean)
            held = (1 - sigma) * clean + sigma * noise
            # The loop uses channels last.
            return {"latents": held.permute(0, 2, 3, 4, 1).to(tensors["latents"])}

        # A step takes seconds, and so does each tile of the encoder before the first step.
        parts = (pipeline.vae.encoder, pipeline.text_encoder, pipeline.transformer)
        hooks = [part.register_forward_pre_hook(lambda *_: on_step(done)) for part in parts]
        try:
            clean = self._encoded(window.frames)
            noise = torch.randn(clean.shape, generator=generator).to(clean)
            height, width = window.frames.shape[1:3]
            output = pipeline(
                prompt_of(window),
                height=height,
                width=width,
                num_frames=len(window.frames),
                frame_rate=float(spec.fps),
                num_inference_steps=spec.steps,
                guidance_scale=spec.guidance_scale,
                generator=generator,
                latents=noise,
                output_type="latent",
                callback_on_step_end=step_ended,
                callback_on_step_end_tensor_inputs=["latents", "audio_latents"],
            )
        finally:
            for hook in hooks:
                hook.remove()
        on_step(done)
        return self._decoded(output.audio)

    def _encoded(self, frames: Frames) -> torch.Tensor:
        """Return the latents [1, c, t, h, w] of frames, normalised for the transformer."""
        vae = self.pipeline.vae
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(self._device)
        pixels = pixels.permute(3, 0, 1, 2)[None].to(vae.dtype).div_(127.5).sub_(1.0)
        latents: torch.Tensor = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
        require_finite(latents, "the VAE's encoder")
        return latents.float()

    def _decoded(self, latents: torch.Tensor) -> Waveform:
        """Return the waveform of the sound latents [1, c, n]."""
        pipeline = self.pipeline
        vae, vocoder = pipeline.audio_vae, pipeline.vocoder
        latents = latents.to(vae.dtype) / vae.config.scaling_factor
        mel = vae.decode(latents, return_dict=False)[0]
        wave = vocoder(mel.to(vocoder.dtype), return_dict=False)[0][0, 0].float()
        require_finite(wave, "the vocoder")
        samples = wave.cpu().numpy()[:, None]
        return Waveform(samples, pipeline.audio_sample_rate)

    def warm_up(self, width: int, height: int) -> None:
        """Run briefly every part that a window of this size uses."""
        spec = self.spec
        self.spec = replace(spec, steps=2)
        try:
            frames = np.zeros((_WARM_FRAMES, height, width, 3), np.uint8)
            self.hear(SoundInput("", "", frames, seed=0), lambda _step: None)
        finally:
            self.spec = spec

    def run_eagerly(self) -> None:
        """Do nothing, because nothing is compiled."""

    def move(self, device: str) -> None:
        """Move all weights to `device`."""
        self.pipeline.to(device)


def prompt_of(window: SoundInput) -> str:
    """Return the prompt for the model: the scene and its sound. Spoken words are between <S> and
    <E>, and other sounds between <AUDCAP> and <ENDAUDCAP> (diffusers 0.42.1,
    `Kandinsky6TI2VAPipeline.expand_prompts`).

    In a prompt of the caller, only the words that somebody says are spoken, because other
    quotations may be text on a sign.
    """
    if "<S>" in window.prompt or "<AUDCAP>" in window.prompt:
        return window.prompt  # the prompt is written for this model
    seen = _SPOKEN.sub(r"\1<S>\2<E>", window.prompt)
    if not window.sound:
        return seen
    spoken = " ".join(f"<S>{words}<E>" for words in _QUOTED.findall(window.sound))
    around = " ".join(_QUOTED.sub("", window.sound).split())
    return " ".join(part for part in (seen, spoken, f"<AUDCAP>{around}<ENDAUDCAP>") if part)


class _TextOnly:
    """A tokenizer in the place of the pipeline's processor for pictures and videos. That processor
    needs torchvision, and the text encoder gets no pictures here."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, *, images: None = None, videos: None = None, **options: Any) -> Any:
        return self._tokenizer(**options)


def _small_parts(folder: Path) -> dict[str, Any]:
    """Load the parts of the pipeline besides its networks."""
    import diffusers

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    second = AutoTokenizer.from_pretrained(folder / "tokenizer_2", local_files_only=True)
    scheduler = getattr(diffusers, read_json(folder / "model_index.json")["scheduler"][1])
    return {
        "tokenizer": _TextOnly(tokenizer),
        "tokenizer_2": second,
        "scheduler": scheduler.from_pretrained(folder / "scheduler", local_files_only=True),
    }


@contextmanager
def _told_of_memory(spec: ModelSpec) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"The worker has too little GPU memory for {spec.name}") from error
