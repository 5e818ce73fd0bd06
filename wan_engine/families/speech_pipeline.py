"""The networks of Wan2.2-S2V and their loop, as a pipeline of diffusers.

    latents   19 of the 73 frames before | the clip's, 21 of 84 frames
    decoded   73 frames, left out        | 84 frames

The frames before the first segment are grey, and the last six of them are the picture, so that the
clip begins with the picture (`init_first_frame` of the authors' loop, Wan-Video/Wan2.2 at 42bf4cf,
`wan/speech2video.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLWan, WanPipeline
from diffusers.utils.torch_utils import get_module_execution_device, randn_tensor
from transformers import AutoTokenizer, UMT5EncoderModel, Wav2Vec2Model

from wan_engine.families.continuation import latent_moments
from wan_engine.families.first_frames import encode_then_grey
from wan_engine.families.sound_features import of_frames
from wan_engine.networks.speech import SpeechTransformer
from wan_engine.networks.speech_positions import MOTION_FRAMES
from wan_engine.runtime.finite import require_finite

_PICTURE_FRAMES = 6  # frames of the motion that show the picture
_STRIDE = 4  # frames per latent
StepEnded = Callable[[Any, int, torch.Tensor, dict[str, Any]], dict[str, Any]]


class SpeechPipeline(WanPipeline):
    """Embeds text and uses the text encoder and the VAE as the other Wan pipelines do."""

    model_cpu_offload_seq = "text_encoder->audio_encoder->transformer->vae"
    network_classes: ClassVar[Mapping[str, Any]] = {
        "text_encoder": UMT5EncoderModel,
        "audio_encoder": Wav2Vec2Model,
        "vae": AutoencoderKLWan,
        "transformer": SpeechTransformer,
    }
    fps = 16

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        vae: Any,
        transformer: Any,
        audio_encoder: Any,
        scheduler: Any,
        transformer_2: None = None,
        boundary_ratio: None = None,
        expand_timesteps: bool = False,
    ) -> None:
        super().__init__(tokenizer, text_encoder, vae, scheduler, transformer)
        self.register_modules(audio_encoder=audio_encoder)

    @classmethod
    def from_pretrained(cls, folder: str, **given: Any) -> SpeechPipeline:
        """Build the pipeline from the given networks and the tokenizer in `folder`. The family sets
        the scheduler."""
        given.pop("local_files_only", None)
        tokenizer = AutoTokenizer.from_pretrained(Path(folder, "tokenizer"), local_files_only=True)
        return cls(tokenizer=tokenizer, scheduler=None, **given)

    @torch.no_grad()
    def __call__(
        self,
        *,
        picture: torch.Tensor,
        motion: torch.Tensor | None,
        sound: torch.Tensor,
        start_seconds: float,
        prompt_embeds: torch.Tensor,
        negative_prompt_embeds: torch.Tensor | None,
        width: int,
        height: int,
        num_frames: int,
        num_inference_steps: int,
        guidance_scale: float,
        generator: torch.Generator,
        callback_on_step_end: StepEnded,
        **_: Any,
    ) -> Any:
        """Sample a segment. The `frames` of the answer are normalised latents [1, 16, n, h, w]:
        those of `motion`, then `num_frames` / 4 new ones.

        `picture` [1, 3, 1, H, W] and `motion` [1, 3, 73, H, W] are in -1..1. `motion` is None
        before the first segment. `sound` is [n] at 16 kHz, and the first frame is at its
        `start_seconds`.
        """
        device, dtype = self._execution_device, self.transformer.dtype
        before = self._encoded(begun_with(picture) if motion is None else motion)
        shown = self._encoded(picture)
        features = self.hear(sound, start_seconds, num_frames)
        given = {
            "picture": shown.to(device, dtype),
            "motion": before.to(device, dtype),
        }
        texts = [(prompt_embeds, features.to(device))]
        if negative_prompt_embeds is not None:
            texts.append((negative_prompt_embeds, 0 * texts[0][1]))  # as the authors: no sound
        sides = (side // self.vae_scale_factor_spatial for side in (height, width))
        shape = (1, self.transformer.config.in_dim, num_frames // _STRIDE, *sides)
        latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        for index, time in enumerate(self.scheduler.timesteps):
            found = [
                self.transformer(latents.to(dtype), time[None], text.to(dtype), sound=one, **given)
                for text, one in texts
            ]
            velocity = found[0].float()
            if len(found) > 1:
                velocity = found[1].float() + guidance_scale * (velocity - found[1].float())
            latents = self.scheduler.step(velocity, time, latents, return_dict=False)[0]
            latents = callback_on_step_end(self, index, time, {"latents": latents})["latents"]
        return SimpleNamespace(frames=torch.cat([before.to(latents), latents], dim=2))

    def hear(self, sound: torch.Tensor, start_seconds: float, frames: int) -> torch.Tensor:
        """Return the features of the sound for each of `frames` frames, from all layers of the
        speech model: [1, layers, width, frames] in float32."""
        encoder = self.audio_encoder
        sound = sound.to(get_module_execution_device(encoder), encoder.dtype)
        layers = torch.cat(encoder(sound[None], output_hidden_states=True).hidden_states)
        require_finite(layers, "the speech model")
        return of_frames(layers.float(), start_seconds, frames, self.fps)

    def _encoded(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode `pixels` [1, 3, 4n + 1, H, W] to normalised latents, with the mode of the
        distribution."""
        vae = self.vae
        pixels = pixels.to(device=get_module_execution_device(vae), dtype=vae.dtype)
        latents = encode_then_grey(vae, pixels, pixels.shape[2]).float()
        mean, std = latent_moments(vae, latents)
        require_finite(latents, "the VAE's encoder")
        normalised: torch.Tensor = (latents - mean) / std
        return normalised


def begun_with(picture: torch.Tensor) -> torch.Tensor:
    """Return the motion before a clip that begins with `picture` [1, 3, 1, H, W]: [1, 3, 73, H,
    W]."""
    grey = picture.new_zeros(1, 3, MOTION_FRAMES - _PICTURE_FRAMES, *picture.shape[3:])
    return torch.cat([grey, picture.expand(-1, -1, _PICTURE_FRAMES, -1, -1)], dim=2)
