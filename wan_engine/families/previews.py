"""Shows unfinished latents as small frames, by a linear map from their channels to colours.

The map is fitted to the VAE once, and only if anyone looks: the VAE encodes a moving picture of
random shapes, and least squares fit its colours to the latents. So it works with any VAE of this
kind. With the one of `wan-tiny`, previews of photographs correlate by 0.97 and more with what the
decoder makes of the same latents. With random weights, the map means nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import get_module_execution_device
from PIL import Image, ImageDraw

from wan_engine.families.continuation import latent_moments, to_pixels
from wan_engine.families.first_frames import encode_then_grey
from wan_engine.schema import Frames

_LEARNT_POSITIONS = 16  # latents per side of the picture that the map is fitted to
_LEARNT_FRAMES = 9  # three latents
_SHAPES = 300
_STEP_PIXELS = 2  # pixels by which the picture moves per frame
_STRIDE = 4  # frames per latent, except the first
_RIDGE = 1e-3  # keeps the weights of unimportant channels small


class LatentColours:
    """The linear map of a VAE. `weights` are [channels + 1, 3], the last row the bias, for colours
    in -1..1."""

    def __init__(self, weights: torch.Tensor) -> None:
        self._weights = weights

    @classmethod
    @torch.no_grad()
    def learnt(cls, vae: Any) -> LatentColours:
        """Fit the map to a loaded `vae`."""
        side = _LEARNT_POSITIONS * vae.config.scale_factor_spatial
        frames = _moving_picture(side)
        pixels = to_pixels(frames).to(get_module_execution_device(vae), vae.dtype)
        latents = encode_then_grey(vae, pixels, len(frames)).float()
        mean, std = latent_moments(vae, latents)
        seen = _with_one((latents - mean) / std).flatten(0, 2).double()
        shown = _shrunk(pixels.float(), tuple(latents.shape[3:])).flatten(0, 2).double()
        ridge = _RIDGE * len(seen) * torch.eye(seen.shape[1]).to(seen)
        return cls(torch.linalg.solve(seen.T @ seen + ridge, seen.T @ shown).float())

    @torch.no_grad()
    def of(self, latents: torch.Tensor) -> Frames:
        """Small frames, uint8 [n, h, w, 3] in host memory, of latents [1, c, n, h, w]."""
        colours = _with_one(latents.float()) @ self._weights.to(latents.device)
        pixels = colours.add(1.0).mul(127.5).clamp(0, 255).round().to(torch.uint8)
        shown: Frames = pixels.cpu().numpy()
        return shown


def estimate(scheduler: Any, latents: torch.Tensor) -> torch.Tensor:
    """The clean latents that the scheduler expects, computed after its last step, which returned
    `latents`. They are free of noise much earlier than `latents`."""
    if (velocity := getattr(scheduler, "velocity", None)) is not None:
        clean: torch.Tensor = latents - scheduler.sigmas[scheduler.step_index] * velocity
    else:
        clean = scheduler.model_outputs[-1]  # UniPC stores its estimates
    return clean


def evenly(latents: torch.Tensor, most: int) -> torch.Tensor:
    """At most `most` of the latents [1, c, n, h, w], evenly spaced from the first to the last."""
    count = latents.shape[2]
    chosen = np.linspace(0, count - 1, min(most, count)).round().astype(int)
    return latents[:, :, chosen.tolist()]


def _with_one(latents: torch.Tensor) -> torch.Tensor:
    """[1, c, n, h, w] as [n, h, w, c + 1], with a one for the bias."""
    channels_last = latents[0].permute(1, 2, 3, 0)
    return torch.cat([channels_last, torch.ones_like(channels_last[..., :1])], dim=-1)


def _shrunk(pixels: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """The mean colours [n, h, w, 3] of the part of `pixels` [1, 3, 4n - 3, H, W] that each latent
    covers."""
    later = pixels[0, :, 1:].unflatten(1, (-1, _STRIDE)).mean(2)
    means = torch.cat([pixels[0, :, :1], later], dim=1).transpose(0, 1)
    height, width = size
    return torch.nn.functional.adaptive_avg_pool2d(means, (height, width)).permute(0, 2, 3, 1)


def _moving_picture(side: int) -> Frames:
    """Frames [9, side, side, 3] of a moving picture. Overlapping shapes of random colours have many
    statistics of photographs (Baradad et al. 2021, "Learning to See by Looking at Noise")."""
    rng = np.random.default_rng(0)
    whole = side + _STEP_PIXELS * _LEARNT_FRAMES
    picture = _soft_colours(whole, 5, rng)
    drawing = ImageDraw.Draw(picture)
    for _ in range(_SHAPES):
        radius = 0.35 * whole * rng.random() ** 3 + 2  # mostly small ones
        x, y = rng.random(2) * whole
        wide = radius * (0.4 + 1.2 * rng.random())
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        drawing.ellipse((x - wide, y - radius, x + wide, y + radius), fill=colour)
    pixels = np.asarray(Image.blend(picture, _soft_colours(whole, 9, rng), 0.3))
    moves = range(0, _STEP_PIXELS * _LEARNT_FRAMES, _STEP_PIXELS)
    return np.stack([pixels[at : at + side, at : at + side] for at in moves])


def _soft_colours(side: int, spots: int, rng: np.random.Generator) -> Image.Image:
    """Random colours that blend into each other."""
    colours = rng.integers(0, 256, (spots, spots, 3), np.uint8)
    return Image.fromarray(colours).resize((side, side), Image.Resampling.BICUBIC)
