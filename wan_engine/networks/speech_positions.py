"""Computes the positions of Wan2.2-S2V's tokens in time and picture, and packs the frames before
into few tokens.

    tokens   video, t x h x w | picture, h x w | 1 latent, h x w | 2, h/2 x w/2 | 16, 4 x h/4 x w/4
    time     0 ... t - 1      | 30             | -1              | -3           | -19 -14 -9 -4

Of the latents before, the nearest comes first. Fewer tokens are spread over the whole picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from wan_engine.networks.attention import Rotary

MOTION_FRAMES = 73
"""The number of frames before a clip that condition it (`motion_frames` of the authors'
configuration)."""
MOTION_LATENTS = 19
"""The number of their latents. 1, 2 and 16 of them become tokens of different patch sizes."""

_BUCKETS = ((1, -1), (2, -3), (16, -19))  # latents, nearest first, and the time of the oldest
_PICTURE_TIME = 30
_THETA = 10_000.0


@dataclass(frozen=True)
class Grid:
    """The positions of a box of tokens on each of three axes."""

    times: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]


def grids(frames: int, height: int, width: int, *, motion: bool) -> Iterator[Grid]:
    """Yield the grids of all tokens in their order, for a video of `frames` x `height` x `width`
    tokens."""
    rows, columns = tuple(range(height)), tuple(range(width))
    yield Grid(tuple(range(frames)), rows, columns)
    yield Grid((_PICTURE_TIME,), rows, columns)
    for index, (latents, oldest) in enumerate(_BUCKETS if motion else ()):
        patch = 2**index
        yield Grid(
            tuple(-time for time in _spread(-oldest, -oldest - latents + 1, max(1, latents // 4))),
            _spread(0, height - 1, height // patch),
            _spread(0, width - 1, width // patch),
        )


def _spread(first: int, last: int, count: int) -> tuple[int, ...]:
    """Return `count` integers from `first` to `last`, truncated as the authors do."""
    return tuple(int(number) for number in np.linspace(first, last, count).astype(int))


def rotary(boxes: Sequence[Grid], head_dim: int, device: torch.device) -> Rotary:
    """Return the rotations of all tokens of `boxes`. Time gets the channels that rows and columns
    leave, as in Wan2.1."""
    part = 2 * (head_dim // 6)
    found = [
        torch.cat(
            [
                _over(_angles(box.times, head_dim - 2 * part), box, 0),
                _over(_angles(box.rows, part), box, 1),
                _over(_angles(box.columns, part), box, 2),
            ],
            dim=-1,
        )
        for box in boxes
    ]
    angles = torch.cat([one.flatten(0, 2) for one in found])
    # Cosine and sine are computed in float64, which keeps all digits of a large position.
    return tuple(  # type: ignore[return-value]
        one.float().to(device)[None, :, None] for one in (angles.cos(), angles.sin())
    )


def _angles(positions: Sequence[int], channels: int) -> torch.Tensor:
    """Return float64 [positions, channels / 2]."""
    steps = torch.arange(0, channels, 2, dtype=torch.float64) / channels
    return torch.outer(torch.tensor(positions, dtype=torch.float64), _THETA**-steps)


def _over(angles: torch.Tensor, box: Grid, axis: int) -> torch.Tensor:
    """Return the angles of one axis at each token of the box, [times, rows, columns, channels]."""
    shape = [1, 1, 1, angles.shape[1]]
    shape[axis] = len(angles)
    sizes = len(box.times), len(box.rows), len(box.columns)
    return angles.view(shape).expand(*sizes, -1)


class FramePacker(nn.Module):
    """Packs the last latents into tokens: the nearest in small patches, older ones in larger
    patches."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.proj, self.proj_2x, self.proj_4x = (
            nn.Conv3d(channels, dim, size, stride=size)
            for size in ((1, 2, 2), (2, 4, 4), (4, 8, 8))
        )

    def forward(self, motion: torch.Tensor) -> torch.Tensor:
        """Maps latents [1, c, n, h, w] to tokens [1, m, dim]. If there are fewer than 19 latents,
        the earlier ones are zero."""
        missing = MOTION_LATENTS - motion.shape[2]
        motion = nn.functional.pad(motion, (0, 0, 0, 0, max(0, missing), 0))
        far, mid, near = motion[:, :, -MOTION_LATENTS:].split((16, 2, 1), dim=2)
        packed = self.proj(near), self.proj_2x(mid), self.proj_4x(far)
        return torch.cat([one.flatten(2).transpose(1, 2) for one in packed], dim=1)
