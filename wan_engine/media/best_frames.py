"""Chooses the frames of a video that show its subject best. Plain image statistics, no model: the
same frames always give the same choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wan_engine.media.framing import prominence

Floats = NDArray[np.floating[Any]]

_THUMB_PIXELS = 16  # pixels per side; small movements of a subject do not matter
_BINS = 4  # levels per colour
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_LEAST_CONTRAST = 0.03  # below this, a frame is black or has one colour
_LEAST_LIGHT = 0.12  # of the brightest hundredth: the first and last frames of a fade
_CUT, _DRIFT = 0.30, 0.45  # from the previous frame, and from the scene so far; `_distance`
_ALIKE = 0.15  # for the same view again after another one
_LEAST_SCENE_FRAMES = 3  # fewer frames are the middle of a fade
_RIM_FRAMES = 6  # a scene of this many frames can drop the first and the last, which may be mixed


@dataclass(frozen=True)
class Look:
    """The measurements of one frame. `sharpness` is the variance of the Laplacian, `contrast`
    the standard deviation of the brightness, `light` that of the brightest hundredth, all from 0
    to 1."""

    sharpness: float
    contrast: float
    light: float
    prominence: float
    thumb: Floats
    colours: Floats

    @property
    def shows_something(self) -> bool:
        return self.contrast >= _LEAST_CONTRAST and self.light >= _LEAST_LIGHT


def look(image: Image.Image) -> Look:
    """Measure an RGB frame. All frames of a video must have one size, of a few hundred pixels."""
    grey = np.asarray(image, np.float32) @ _GREY / 255
    middle = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
    thumb = image.resize((_THUMB_PIXELS, _THUMB_PIXELS), Image.Resampling.BOX)
    bins = np.asarray(image.reduce(2), np.int32) * _BINS // 256
    counts = np.bincount((bins @ (_BINS * _BINS, _BINS, 1)).reshape(-1), minlength=_BINS**3)
    return Look(
        sharpness=float(laplacian.var()),
        contrast=float(grey.std()),
        light=float(np.quantile(grey, 0.99)),
        prominence=prominence(image),
        thumb=np.asarray(thumb, np.float32) / 255,
        colours=(counts / counts.sum()).astype(np.float32),
    )


def best(looks: Sequence[Look], most: int) -> list[int]:
    """The indices of at most `most` frames, best first, each from another scene and view. None if
    no frame shows anything."""
    scenes = _scenes(looks)
    sharpest = max((look.sharpness for look in looks), default=0) or 1.0
    ranked: list[tuple[float, int]] = []
    for scene in scenes:
        index = max(_inner(scene) if len(scenes) > 1 else scene, key=lambda one: _score(looks[one]))
        size = 0.5 + looks[index].prominence / 2
        sharp = math.sqrt(looks[index].sharpness / sharpest)
        ranked.append((sharp * size * math.sqrt(len(scene)), index))
    chosen: list[int] = []
    for _, index in sorted(ranked, key=lambda pair: (-pair[0], pair[1])):
        if all(_distance(looks[index], looks[other]) > _ALIKE for other in chosen):
            chosen.append(index)
    return chosen[:most]


def _score(look: Look) -> float:
    """The quality of a frame, relative to the other frames of its scene. In a fade, contrast
    decreases."""
    return look.sharpness * (0.5 + look.prominence / 2) * look.contrast


def _scenes(looks: Sequence[Look]) -> list[list[int]]:
    """The frames of each scene, without empty ones. Scenes as short as a fade are left out if there
    are others."""
    scenes: list[list[int]] = []
    before: Look | None = None
    mean: Floats = np.zeros((_THUMB_PIXELS, _THUMB_PIXELS, 3), np.float32)
    for index, one in enumerate(looks):
        if not one.shows_something:
            before = None
            continue
        if before is None or _distance(before, one) > _CUT or _apart(mean, one.thumb) > _DRIFT / 2:
            scenes.append([])
            mean = one.thumb
        scenes[-1].append(index)
        mean = mean + (one.thumb - mean) / len(scenes[-1])
        before = one
    longer = [scene for scene in scenes if len(scene) >= _LEAST_SCENE_FRAMES]
    return longer or scenes


def _inner(scene: list[int]) -> list[int]:
    return scene[1:-1] if len(scene) >= _RIM_FRAMES else scene


def _distance(one: Look, other: Look) -> float:
    """The difference of two frames, 0 to 1.5: by place, plus by colours regardless of place."""
    colours = float(np.abs(one.colours - other.colours).sum() / 2)
    return _apart(one.thumb, other.thumb) + colours / 2


def _apart(one: Floats, other: Floats) -> float:
    return float(np.abs(one - other).mean())
