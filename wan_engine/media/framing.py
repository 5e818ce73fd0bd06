"""Estimates where the subject of a picture is, and crops pictures. Plain image statistics, no
model: the same picture always gives the same result."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from wan_engine.schema import WHOLE, Crop

_SIDE_PIXELS = 96  # enough to place a subject, and insensitive to noise and fine texture
_PRIOR_WIDTH = 0.2  # standard deviation of the pull to the middle, in sides of the picture
_PRIOR_DEPTH = {
    "landscape": 0.45,
    "portrait": 0.36,
}  # faces are above the middle, most in portraits
_COLOUR_WEIGHT, _EDGE_WEIGHT = 1.0, 0.5
_STRANGE = 0.15  # of at most 1.7: a different colour, not noise or a shade


def subject(image: Image.Image) -> tuple[float, float]:
    """Where the subject of an RGB picture is likely to be, as fractions of its width and height.

    It is the centre of everything that differs in colour from the picture's rim or has edges,
    pulled towards the middle. An estimate is enough, because the crops around it keep 60 % of each
    side.
    """
    pixels = _small(image)
    height, width = pixels.shape[:2]
    if min(height, width) < 2:  # a strip has no gradient along one axis
        return 0.5, 0.5
    edges = np.hypot(*np.gradient(pixels.mean(axis=2)))
    salience = _COLOUR_WEIGHT * _normed(_strangeness(pixels)) + _EDGE_WEIGHT * _normed(edges)
    x = (np.arange(width) + 0.5) / width
    y = (np.arange(height) + 0.5) / height
    middle = _PRIOR_DEPTH["portrait" if height > width else "landscape"]
    prior = np.exp(-((x - 0.5) ** 2 + (y[:, None] - middle) ** 2) / (2 * _PRIOR_WIDTH**2))
    # In a plain picture only the floor is left, and the pull alone decides.
    weight = (salience**2 + 1e-3) * prior
    weight /= weight.sum()
    return float((weight * x).sum()), float((weight * y[:, None]).sum())


def prominence(image: Image.Image) -> float:
    """The share of an RGB picture that its subject probably takes, 0 to 1: the share that differs
    from the picture's rim."""
    strange = _strangeness(_small(image))
    return float((strange > max(_STRANGE, strange.max() / 2)).mean())


def cropped(image: Image.Image, crop: Crop) -> Image.Image:
    """The part of `image` that `crop` names, to the nearest pixel."""
    if crop == WHOLE:
        return image
    left, top, right, bottom = crop
    width, height = image.size
    box = (round(left * width), round(top * height), round(right * width), round(bottom * height))
    return image.crop(box)


def _small(image: Image.Image) -> np.ndarray:
    """[h, w, 3] with sides of at most `_SIDE_PIXELS`, 0 to 1, slightly blurred."""
    scale = min(1.0, _SIDE_PIXELS / max(image.size))
    sides = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(sides, Image.Resampling.BILINEAR, reducing_gap=2)
    pixels: np.ndarray = np.asarray(small.filter(ImageFilter.GaussianBlur(1)), np.float64)
    return pixels / 255


def _strangeness(pixels: np.ndarray) -> np.ndarray:
    """How far the colour of each pixel is from that of the picture's rim."""
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return np.asarray(np.linalg.norm(pixels - np.median(rim, axis=0), axis=2))


def _normed(values: np.ndarray) -> np.ndarray:
    most = float(values.max())
    return values / most if most > 0 else values
