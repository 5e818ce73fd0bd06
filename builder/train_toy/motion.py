"""Measures how the camera moved between two frames, without knowing the prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

_LEAST_ZOOM = 1.04  # a smaller change over 5 s does not count as a move
_LEAST_SHIFT = 0.02  # part of the side


@dataclass(frozen=True)
class Motion:
    """How the view on a picture changed. `zoom` above 1 is closer. `right` and `down` are the
    direction of the view, as parts of the side."""

    zoom: float
    right: float
    down: float

    def names(self) -> str:
        """The move of MOVES that is closest to this."""
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


def find_motion(picture: torch.Tensor, frame: torch.Tensor) -> Motion:
    """Find the zoom and shift of `picture` that come closest to `frame` (both [1, 3, h, w]).

    The search is coarse, then fine, on the area that both show.
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
    """Return the mean square error of each (log zoom, right, down) [n, 3], where the picture has
    content."""
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
