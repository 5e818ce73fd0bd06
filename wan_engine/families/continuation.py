"""Extends the stock image-to-video pipeline with conditions of more than one image.

Only `prepare_latents` differs; loop, schedule and experts are those of diffusers 0.42.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import WanImageToVideoPipeline
from diffusers.utils.torch_utils import get_module_execution_device, randn_tensor

from wan_engine.families.first_frames import encode_then_grey
from wan_engine.runtime.finite import require_finite
from wan_engine.schema import Frames


@dataclass(frozen=True)
class Start:
    """The condition of a segment's first latents, instead of the image alone.

    `frames`, uint8 [4m + 1, H, W, 3], are encoded into the first m + 1 latents. `latents`,
    normalised [1, c, n, h, w], are used as they are. `anchored` is the layout of Stable Video
    Infinity 2.0 Pro, with the image before `latents`, or before the last latent of `frames`.
    """

    frames: Frames | None = None
    latents: torch.Tensor | None = None
    anchored: bool = False


class ContinuingPipeline(WanImageToVideoPipeline):
    """`WanImageToVideoPipeline` with a condition that follows `start`, if that is set. Without it,
    the condition is bit for bit that of the stock pipeline."""

    start: Start | None = None

    def prepare_latents(
        self,
        image: torch.Tensor,
        batch_size: int,
        num_channels_latents: int = 16,
        height: int = 480,
        width: int = 832,
        num_frames: int = 81,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
        latents: torch.Tensor | None = None,
        last_image: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Noise and condition for the stock loop (`image`: [1, 3, H, W] in -1..1).

        With `expand_timesteps`: (noise, clean latents, mask that is 0 where they are). Otherwise:
        (noise, 4 mask and c condition channels), with a mask of 1 where the condition is known. Of
        `last_image` [1, 3, H, W] the last frame of the last latent is known.
        """
        start = self.start
        if start is None and (self.config.expand_timesteps or batch_size > 1):
            return super().prepare_latents(  # type: ignore[no-any-return]
                image,
                batch_size,
                num_channels_latents,
                height,
                width,
                num_frames,
                dtype,
                device,
                generator,
                latents,
                last_image,
            )
        spatial = height // self.vae_scale_factor_spatial, width // self.vae_scale_factor_spatial
        count = (num_frames - 1) // self.vae_scale_factor_temporal + 1
        shape = (1, num_channels_latents, count, *spatial)
        noise = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        condition = torch.zeros_like(noise)  # in normalised space, so not encoded grey
        if start is None:
            given_latents = self._encoded(image.unsqueeze(2), noise, num_frames, last_image)
            known = 1
        elif start.anchored:
            given = [self._encoded(image.unsqueeze(2), noise)]
            if start.latents is not None:
                given.append(start.latents.to(noise))
            elif start.frames is not None:
                pixels = to_pixels(start.frames).to(image)
                given.append(self._encoded(pixels, noise)[:, :, -1:])
            given_latents = torch.cat(given, dim=2)
            known = 1  # the mask marks only the anchor as known
        elif start.latents is not None:
            given_latents = start.latents.to(noise)
            known = given_latents.shape[2]
        else:
            assert start.frames is not None, "a start has frames, latents or an anchor"
            pixels = to_pixels(start.frames).to(image)  # [1, 3, k, H, W]
            known = (len(start.frames) - 1) // self.vae_scale_factor_temporal + 1
            # The other kind was trained with mid-grey in the unknown frames.
            frames = pixels.shape[2] if self.config.expand_timesteps else num_frames
            given_latents = self._encoded(pixels, noise, frames, last_image)
        condition[:, :, : given_latents.shape[2]] = given_latents
        if self.config.expand_timesteps:
            mask = torch.ones(1, 1, count, *spatial).to(noise)
            mask[:, :, :known] = 0
            return noise, condition, mask
        mask = torch.zeros(1, self.vae_scale_factor_temporal, count, *spatial).to(noise)
        mask[:, :, :known] = 1
        if last_image is not None:
            mask[:, -1, -1] = 1
        return noise, torch.cat([mask, condition], dim=1)

    def _encoded(
        self,
        pixels: torch.Tensor,
        like: torch.Tensor,
        frames: int | None = None,
        last_image: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Normalised latents of `pixels` [1, 3, n, H, W] followed by mid-grey, `frames` in total,
        of which `last_image` [1, 3, H, W] is the last. It is the mode of the distribution, as in
        the stock pipeline."""
        vae = self.vae
        device = get_module_execution_device(vae)
        pixels = pixels.to(device=device, dtype=vae.dtype)
        last = None if last_image is None else last_image[:, :, None].to(pixels)
        latents = encode_then_grey(vae, pixels, frames or pixels.shape[2], last).to(like)
        mean, std = latent_moments(vae, like)
        require_finite(latents, "the VAE's encoder")
        # In the order of the stock pipeline, for the same bits.
        normalised: torch.Tensor = (latents - mean) * (1.0 / std)
        return normalised


def latent_moments(vae: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the VAE's latents, [1, c, 1, 1, 1] each."""
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(like)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std


def to_pixels(frames: Frames) -> torch.Tensor:
    """Convert uint8 [k, H, W, 3] to float32 [1, 3, k, H, W] in -1..1, as the stock pipeline does
    with an image."""
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None]
    return pixels.float() / 255.0 * 2.0 - 1.0
