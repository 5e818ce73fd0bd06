"""Two clips by our pipeline with the tiny network of `recorded`, with the same VAE, noise, text and
features as the authors' loop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from PIL import Image

from tests.networks.recorded import CONFIG, TEXT, filled, given
from wan_engine.families import speech_pipeline
from wan_engine.families.continuation import latent_moments, to_pixels
from wan_engine.families.i2v import make_scheduler
from wan_engine.families.s2v import SpeechToVideo
from wan_engine.families.speech_pipeline import SpeechPipeline, begun_with
from wan_engine.networks.speech import SpeechTransformer
from wan_engine.schema import Carry
from wan_engine.toy import MODELS

WIDTH, HEIGHT, CLIP, STEPS = 64, 64, 24, 3
_LAYERS, _FEATURES = 25, 160


def vae() -> Any:
    """A VAE of 16 channels and stride 8. Its random weights let a signal pass."""
    made = AutoencoderKLWan(
        base_dim=4,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    return filled(made, seed=900)


def hidden() -> torch.Tensor:
    """The output of the speech model, [layers, n, width]."""
    return given((_LAYERS, _FEATURES, 16), 801)


def text(*, positive: bool) -> torch.Tensor:
    return given((1, TEXT, 32), 802 if positive else 803)


def noises() -> list[torch.Tensor]:
    return [given((1, 16, CLIP // 4, HEIGHT // 8, WIDTH // 8), 804 + clip) for clip in range(2)]


def picture() -> Image.Image:
    pixels = np.random.default_rng(810).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return Image.fromarray(pixels)


def scheduler() -> Any:
    return make_scheduler(MODELS["wan-tiny-s2v"])


class _Heard(torch.nn.Module):
    dtype, device = torch.float32, torch.device("cpu")

    def forward(self, sound: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(hidden_states=tuple(layer[None] for layer in hidden()))


def run() -> torch.Tensor:
    """Both clips, [3, n, height, width] in -1..1."""
    network = filled(SpeechTransformer(**CONFIG), seed=7)
    parts = {"tokenizer": None, "text_encoder": None, "audio_encoder": _Heard()}
    pipeline = SpeechPipeline(vae=vae(), transformer=network, scheduler=scheduler(), **parts)
    family = object.__new__(SpeechToVideo)
    pixels = to_pixels(np.array(picture())[None])
    carry = Carry(pixels=begun_with(pixels))
    noise, clips = iter(noises()), []
    stock, speech_pipeline.randn_tensor = speech_pipeline.randn_tensor, lambda *_, **__: next(noise)
    try:
        for clip in range(2):
            pipeline.scheduler = scheduler()
            latents = pipeline(
                picture=pixels,
                motion=carry.pixels,
                sound=torch.zeros(16_000),
                start_seconds=clip * CLIP / 16,
                prompt_embeds=text(positive=True),
                negative_prompt_embeds=text(positive=False),
                width=WIDTH,
                height=HEIGHT,
                num_frames=CLIP,
                num_inference_steps=STEPS,
                guidance_scale=4.5,
                generator=torch.Generator(),
                callback_on_step_end=lambda _pipe, _index, _time, tensors: tensors,
            ).frames
            mean, std = latent_moments(pipeline.vae, latents)
            samples = family._samples(pipeline.vae, latents * std + mean, None, carry)
            clips.append(torch.cat(list(samples), dim=2)[0])
    finally:
        speech_pipeline.randn_tensor = stock
    return torch.cat(clips, dim=1)
