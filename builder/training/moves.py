"""Camera moves over a picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from builder.training.prompts import MOVES

ZOOM_A_FRAME = 1.0025
"""1.22 over the 80 frame steps of a 5 s clip. A power, so that a later segment zooms on alike."""
PAN_PX_A_FRAME = 0.375
TILT_PX_A_FRAME = 0.25

_STEPS = {  # log zoom, and how far the camera looks to the right and down, a frame
    "still": (0, 0, 0),
    "zoom in": (1, 0, 0),
    "zoom out": (-1, 0, 0),
    "pan left": (0, -1, 0),
    "pan right": (0, 1, 0),
    "tilt up": (0, 0, -1),
    "tilt down": (0, 0, 1),
}


def warp(pictures: torch.Tensor, moves: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """What a camera sees that makes `moves` [n] (numbers in MOVES) over `pictures` [n, 3, h, w].

    `frames` [n, t]: the number of each frame, 0 is the picture itself; fractions and negative ones
    are allowed. Beyond its border the picture is mirrored. Returns [n, 3, t, h, w].
    """
    (count, _, height, width), times = pictures.shape, frames.shape[1]
    steps = torch.tensor([_STEPS[name] for name in MOVES], device=pictures.device)[moves]
    log_zoom = torch.log(torch.tensor(ZOOM_A_FRAME))
    scale = torch.exp(-log_zoom * steps[:, 0:1] * frames)[..., None]  # of what is seen
    shift_x = (2 * PAN_PX_A_FRAME / width) * steps[:, 1:2] * frames
    shift_y = (2 * TILT_PX_A_FRAME / height) * steps[:, 2:3] * frames
    x = (2 * torch.arange(width, device=pictures.device) + 1) / width - 1
    y = (2 * torch.arange(height, device=pictures.device) + 1) / height - 1
    x = (x * scale + shift_x[..., None])[:, :, None, :].expand(count, times, height, width)
    y = (y * scale + shift_y[..., None])[:, :, :, None].expand(count, times, height, width)
    grid = torch.stack([x, y], dim=-1).flatten(0, 1)
    source = pictures[:, None].expand(count, times, 3, height, width).flatten(0, 1)
    seen = F.grid_sample(
        source, grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    return seen.clamp(-1, 1).unflatten(0, (count, times)).transpose(1, 2)
