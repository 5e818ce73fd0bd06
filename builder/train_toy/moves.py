"""Moves a camera over a picture."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from wan_engine.toy.camera_moves import MOVES

ZOOM_A_FRAME = 1.0025
"""1.22 over the 80 frame steps of a 5 s clip. It is a power, so that a later segment zooms
equally."""
PAN_PX_A_FRAME = 0.375
TILT_PX_A_FRAME = 0.25

_STEPS = {  # log zoom, and the shift of the view to the right and down, per frame
    "still": (0, 0, 0),
    "zoom in": (1, 0, 0),
    "zoom out": (-1, 0, 0),
    "pan left": (0, -1, 0),
    "pan right": (0, 1, 0),
    "tilt up": (0, 0, -1),
    "tilt down": (0, 0, 1),
}


def warp(pictures: torch.Tensor, moves: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Return the view of a camera that makes `moves` [n] (numbers in MOVES) over `pictures` [n, 3,
    h, w].

    `frames` [n, t]: the number of each frame. 0 is the picture itself; fractions and negative
    numbers are allowed. The picture is mirrored beyond its border. Returns [n, 3, t, h, w].
    """
    (count, _, height, width), times = pictures.shape, frames.shape[1]
    x, y = _look(moves, frames, height, width, 1)
    x, y = x / (width / 2), y / (height / 2)
    x = x[:, :, None, :].expand(count, times, height, width)
    y = y[:, :, :, None].expand(count, times, height, width)
    grid = torch.stack([x, y], dim=-1).flatten(0, 1)
    source = pictures[:, None].expand(count, times, 3, height, width).flatten(0, 1)
    seen = F.grid_sample(
        source, grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    return seen.clamp(-1, 1).unflatten(0, (count, times)).transpose(1, 2)


def offsets_px(
    moves: torch.Tensor, frames: torch.Tensor, height: int, width: int, stride: int
) -> torch.Tensor:
    """Return how far to the right and down of a place the picture has the content that is seen
    there.

    [n, 2, t, height / stride, width / stride] in pixels, at the middle of each square of `stride`
    pixels.
    """
    still = torch.zeros_like(moves)
    x, y = (
        moved - start
        for moved, start in zip(
            _look(moves, frames, height, width, stride),
            _look(still, frames, height, width, stride),
            strict=True,
        )
    )
    rows, columns = y.shape[2], x.shape[2]
    x = x[:, :, None, :].expand(-1, -1, rows, -1)
    y = y[:, :, :, None].expand(-1, -1, -1, columns)
    return torch.stack([x, y], dim=1)


def directions(moves: torch.Tensor) -> torch.Tensor:
    """Return zoom (1 is in), right and down of each move, -1 to 1: [n, 3]."""
    return torch.tensor([_STEPS[name] for name in MOVES], device=moves.device)[moves].float()


def _look(
    moves: torch.Tensor, frames: torch.Tensor, height: int, width: int, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where each column [n, t, w] and row [n, t, h] looks, in pixels from the picture's
    middle."""
    steps = directions(moves)
    log_zoom = math.log(ZOOM_A_FRAME) * steps[:, 0:1] * frames
    scale = torch.exp(-log_zoom)[..., None]  # scale of the view
    x, y = (
        torch.arange(side // stride, device=moves.device) * stride + (stride - side) / 2
        for side in (width, height)
    )
    shift_x = PAN_PX_A_FRAME * steps[:, 1:2] * frames
    shift_y = TILT_PX_A_FRAME * steps[:, 2:3] * frames
    return x * scale + shift_x[..., None], y * scale + shift_y[..., None]
