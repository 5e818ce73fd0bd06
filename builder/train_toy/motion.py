"""What a trained `wan-tiny` does with photographs, in figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from builder.training import experts as experts_module
from builder.training.moves import warp
from builder.training.prompts import MOVES
from builder.training.vae import decode, denormalise, encode, psnr

_LEAST_ZOOM = 1.04  # what counts as a move, over 5 s
_LEAST_SHIFT = 0.02  # of the side

PROMPTS = {
    "still": "a portrait, the camera is still",
    "zoom in": "the camera slowly zooms in",
    "zoom out": "the camera slowly zooms out",
    "pan left": "the camera pans left",
    "pan right": "the camera pans right",
    "tilt up": "the camera tilts up",
    "tilt down": "the camera tilts down",
}


@dataclass(frozen=True)
class Motion:
    """How the view on a picture changed: `zoom` over 1 is closer; `right` and `down` are where it
    looks to, as a part of the side."""

    zoom: float
    right: float
    down: float

    def names(self) -> str:
        """The one of MOVES that this is most of."""
        amounts = {
            "zoom in": np.log(self.zoom) / np.log(_LEAST_ZOOM),
            "zoom out": -np.log(self.zoom) / np.log(_LEAST_ZOOM),
            "pan right": self.right / _LEAST_SHIFT,
            "pan left": -self.right / _LEAST_SHIFT,
            "tilt down": self.down / _LEAST_SHIFT,
            "tilt up": -self.down / _LEAST_SHIFT,
        }
        name, amount = max(amounts.items(), key=lambda item: item[1])
        return name if amount > 1 else "still"


def read_photo(path: Path, height: int = 144, width: int = 256) -> torch.Tensor:
    """The middle of a photograph, [1, 3, height, width] in -1..1."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1)[None]
    return pixels.float() / 127.5 - 1


def find_motion(picture: torch.Tensor, frame: torch.Tensor) -> Motion:
    """The zoom and shift of `picture` that comes closest to `frame` (both [1, 3, h, w]).

    A search, coarse then fine, on what is in sight of both.
    """
    picture, frame = (F.avg_pool2d(x.float().cpu(), 2) for x in (picture, frame))
    best = (0.0, 0.0, 0.0)
    for width, count in (
        ((0.24, 0.16, 0.16), 9),
        ((0.05, 0.03, 0.03), 7),
        ((0.012, 0.008, 0.008), 5),
    ):
        axes = [
            torch.linspace(-span, span, count) + middle
            for span, middle in zip(width, best, strict=True)
        ]
        candidates = torch.cartesian_prod(*axes)
        errors = torch.cat([_errors(picture, frame, part) for part in candidates.split(128)])
        best = tuple(candidates[int(errors.argmin())].tolist())
    return Motion(float(np.exp(best[0])), best[1], best[2])


def _errors(picture: torch.Tensor, frame: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Mean square error of each (log zoom, right, down) [n, 3], where the picture has content."""
    count = len(candidates)
    zoom = torch.exp(-candidates[:, 0])
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = zoom
    theta[:, 0, 2], theta[:, 1, 2] = 2 * candidates[:, 1], 2 * candidates[:, 2]
    grid = F.affine_grid(theta, [count, 3, *picture.shape[2:]], align_corners=False)
    seen = F.grid_sample(picture.expand(count, -1, -1, -1), grid, align_corners=False)
    inside = (grid.abs().amax(dim=-1) <= 1).float()[:, None]
    errors = ((seen - frame).square() * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp_min(1)
    return errors


@torch.no_grad()
def evaluate_vae(vae: Any, photo: torch.Tensor) -> dict[str, float]:
    """PSNR in dB of the picture, and of frames of a still and a moving clip."""
    frames = torch.arange(33, device=photo.device).float()[None] * 2.5
    still = photo[:, :, None].expand(-1, -1, 33, -1, -1)
    moving = warp(photo, torch.tensor([MOVES.index("pan right")], device=photo.device), frames)
    seen_still, seen_moving = (decode(vae, encode(vae, clip)) for clip in (still, moving))
    return {
        "first_frame_db": psnr(seen_still[:, :, 0], photo),
        "still_last_frame_db": psnr(seen_still[:, :, -1], photo),
        "moving_last_frame_db": psnr(seen_moving[:, :, -1], moving[:, :, -1]),
    }


@torch.no_grad()
def evaluate_clips(
    vae: Any, experts: tuple[Any, Any], text_encoder: Any, tokenizer: Any, photo: torch.Tensor
) -> tuple[dict[str, Any], torch.Tensor]:
    """Figures per move of 5 s clips of one photo, and first, middle and last frames
    [moves, 3, 3, h, w]."""
    device = photo.device
    results, strips = {}, []
    for index, (move, text) in enumerate(PROMPTS.items()):
        tokens, mask = experts_module.tokenise(tokenizer, [text], device)
        states = experts_module.text_states(text_encoder, tokens, mask)
        clip = torch.cat([photo[:, :, None], photo.new_zeros(1, 3, 80, *photo.shape[2:])], dim=2)
        condition = experts_module.condition_of(vae, clip, 1)
        generator = torch.Generator(device).manual_seed(index)
        latents = experts_module.sample(experts, condition, states, generator)
        frames = decode(vae, denormalise(vae, latents)).clamp(-1, 1)
        number = torch.tensor([MOVES.index(move)], device=device)
        wanted = warp(photo, number, torch.tensor([[80.0]], device=device))[:, :, 0]
        motion = find_motion(photo, frames[:, :, -1])
        results[move] = {
            "first_frame_db": psnr(frames[:, :, 0], photo),
            "last_frame_db": psnr(frames[:, :, -1], wanted),
            "zoom": motion.zoom,
            "right": motion.right,
            "down": motion.down,
            "seen_as": motion.names(),
        }
        strips.append(frames[0, :, [0, 40, 80]].transpose(0, 1))
    return results, torch.stack(strips).cpu()


def write_sheet(path: Path, strips: torch.Tensor) -> None:
    """A picture of `strips` [rows, columns, 3, h, w] in -1..1."""
    from PIL import Image

    rows, columns, _, height, width = strips.shape
    pixels = ((strips.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    sheet = pixels.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)
    Image.fromarray(sheet.numpy()).save(path)
