"""Converts colours to what an sRGB screen shows: phones save Display P3, scanners save grey with a
profile, print files are CMYK, and PNG files of cameras and editors may contain their own numbers.

Levels, and the choice of the profile, match those of Chromium 156.
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Points = tuple[float, ...]
"""x and y of white, red, green and blue (CIE 1931)."""

_D65, _C, _DCI = (0.3127, 0.3290), (0.310, 0.316), (0.314, 0.351)
_BT709 = (*_D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060)
_BT2020 = (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046)
# ITU-T H.273, table 2.
_PRIMARIES: dict[int, Points] = {
    1: _BT709,
    4: (*_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    8: (*_C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: _BT2020,
    10: (1 / 3, 1 / 3, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0),
    11: (*_DCI, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_NEARLY_SRGB = (0.4318, 0.4773)  # a gamma of about 1/2.2 alone means sRGB
# BT.709 and similar curves as displays show them (ITU-R BT.1886), not as cameras write them.
_GAMMAS = {1: 2.4, 4: 2.2, 5: 2.8, 6: 2.4, 8: 1.0, 11: 2.4, 14: 2.4, 15: 2.4}
_PQ, _HLG = 16, 18
_WHITE_NITS = 203.0  # white of a film with highlights (ITU-R BT.2408)
_PEAK_NITS = 1000.0
_HLG_SYSTEM_GAMMA = 1.2  # at that peak (ITU-R BT.2100, table 5)
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)
_BLOCK_PIXELS = 2**18
_STEPS = 2**16
_EXACT = ImageCms.Flags.NOOPTIMIZE
_MODES = {b"GRAY": "L", b"RGB ": "RGB", b"CMYK": "CMYK"}


@dataclass(frozen=True)
class Numbers:
    """A colour space without a profile. `light` is the linear light of each of 256 levels; white is
    1. If levels exceed white, `highlights` are compressed."""

    light: Floats
    points: Points = _BT709
    highlights: bool = False
    hlg: bool = False


Space = bytes | Numbers
"""An ICC profile, or numbers."""


def to_srgb(image: Image.Image, space: Space | None) -> Image.Image:
    """`image`, of mode L, RGB or CMYK, as RGB. A colour space that cannot be used is ignored."""
    if isinstance(space, Numbers):
        return _by_numbers(image.convert("RGB"), space)
    if space is not None:
        try:
            return _by_profile(image, space)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            log.debug("colour profile of the image was not usable", exc_info=True)
    return image.convert("RGB")


def is_profile(profile: bytes) -> bool:
    try:
        ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ValueError, TypeError):
        return False
    return True


def by_gamma(exponent: float, points: Points | None) -> Numbers | None:
    """The space of PNG's gAMA and cHRM. None for sRGB, and for meaningless values."""
    if exponent <= 0 or (points and not _usable(points)):
        return None
    if points is None and _NEARLY_SRGB[0] <= exponent <= _NEARLY_SRGB[1]:
        return None
    with np.errstate(under="ignore"):
        return Numbers(_levels() ** np.float32(1 / exponent), points or _BT709)


def by_code_points(primaries: int, transfer: int) -> Numbers | None:
    """The space of ITU-T H.273 numbers. None for numbers that define no colours."""
    points, light = _PRIMARIES.get(primaries), _light(transfer)
    if points is None or light is None:
        return None
    return Numbers(light, points, transfer in (_PQ, _HLG), transfer == _HLG)


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image:
    mode = _MODES.get(profile[16:20])
    if mode == "RGB" and image.mode == "L":
        image = image.convert("RGB")
    if mode != image.mode:
        raise ValueError(f"a profile for {profile[16:20]!r} in a picture of mode {image.mode}")
    if mode == "L":
        return _by_grey_profile(image, profile)
    return _transformed(image, profile)


def _by_grey_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert level by level. LittleCMS samples a grey profile at 33 points, which is 10 levels off
    in the shadows."""
    levels = _transformed(Image.frombytes("L", (256, 1), bytes(range(256))), profile, _EXACT)
    return Image.merge("RGB", [image.point(channel.tobytes()) for channel in levels.split()])


def _transformed(
    image: Image.Image, profile: bytes, flags: ImageCms.Flags = ImageCms.Flags.NONE
) -> Image.Image:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    target = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB", flags=flags)
    assert converted is not None  # only where it works in place
    return converted


def _by_numbers(image: Image.Image, space: Numbers) -> Image.Image:
    table = _srgb_table()
    matrix = _between(space.points, _BT709)
    if not space.highlights and np.allclose(matrix, np.eye(3), atol=1e-3):
        return image.point([int(level) for level in _encoded(space.light, table)] * 3)
    pixels = np.array(image)
    rows = max(1, _BLOCK_PIXELS // image.width)
    for top in range(0, image.height, rows):
        light = space.light[pixels[top : top + rows]]  # [rows, width, 3]
        light = _toned(light, space) if space.highlights else light @ matrix.T
        pixels[top : top + rows] = _encoded(light, table)
    return Image.fromarray(pixels)


def _encoded(light: Floats, table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    levels: NDArray[np.uint8] = table[(light.clip(0, 1) * (_STEPS - 1) + 0.5).astype(np.uint16)]
    return levels


def _srgb_table() -> NDArray[np.uint8]:
    light = np.linspace(0, 1, _STEPS)
    level: NDArray[np.float64] = np.where(
        light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055
    )
    levels: NDArray[np.uint8] = np.rint(level * 255).astype(np.uint8)
    return levels


# --- light ---------------------------------------------------------------------------------------


def _levels() -> Floats:
    return np.linspace(0, 1, 256, dtype=np.float32)


def _light(transfer: int) -> Floats | None:
    """The linear light of each level (ITU-T H.273, table 3)."""
    v = np.linspace(0, 1, 256)
    if transfer in _GAMMAS:
        light = v ** _GAMMAS[transfer]
    elif transfer == 7:
        light = np.where(v < 0.0913, v / 4, ((v + 0.1115) / 1.1115) ** (1 / 0.45))
    elif transfer == 13:
        light = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    elif transfer == 17:
        light = v**2.6 * 52.37 / 48
    elif transfer == _PQ:
        light = _pq(v) * 10_000 / _WHITE_NITS
    elif transfer == _HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(v <= 0.5, v * v / 3, (np.exp((v - c) / a) + b) / 12)
    else:
        return None
    return light.astype(np.float32)


def _pq(v: NDArray[np.float64]) -> NDArray[np.float64]:
    """The light of SMPTE ST 2084, up to 10 000 nits."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    root = v ** (1 / m2)
    result: NDArray[np.float64] = (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    return result


def _toned(light: Floats, space: Numbers) -> Floats:
    """Highlights compressed below white, by the brightest channel of BT.2020, so that hues stay.
    Returns light of BT.709."""
    light = light @ _between(space.points, _BT2020).T
    if space.hlg:
        brightness = np.maximum(light @ _LUMINANCE, 0) ** np.float32(_HLG_SYSTEM_GAMMA - 1)
        light = light * brightness[..., None] * np.float32(_PEAK_NITS / _WHITE_NITS)
    brightest = np.maximum(light.max(axis=-1), np.float32(1e-6))
    toned = np.interp(brightest, *_tone_curve())
    light = light * (toned / brightest).astype(np.float32)[..., None]
    result: Floats = light @ _between(_BT2020, _BT709).T
    return result


def _tone_curve() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """SMPTE ST 2094-50, as Chromium applies it to pictures without a curve of their own: white
    becomes half, and everything above follows a Bezier curve to the peak."""
    white, middle, peak = (1.0, 0.5), (1.65, 0.825), (_PEAK_NITS / _WHITE_NITS, 1.0)
    t = np.linspace(0, 1, 512)
    above = [
        (1 - t) ** 2 * white[axis] + 2 * t * (1 - t) * middle[axis] + t**2 * peak[axis]
        for axis in (0, 1)
    ]
    return np.append(0.0, above[0]), np.append(0.0, above[1])


# --- primaries -----------------------------------------------------------------------------------


def _usable(points: Points) -> bool:
    """Whether the primaries span a triangle with white inside, so that light can be computed."""
    if points[1] <= 0 or max(points) > 2:
        return False
    corners = np.array([[x, y, 1 - x - y] for x, y in _pairs(points)[1:]])
    return bool(abs(np.linalg.det(corners)) > 1e-4)


def _pairs(points: Points) -> list[tuple[float, float]]:
    return list(zip(points[::2], points[1::2], strict=True))


def _xyz(x: float, y: float) -> NDArray[np.float64]:
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _to_xyz(points: Points) -> NDArray[np.float64]:
    """Linear RGB to XYZ, white at its own place."""
    white, *corners = _pairs(points)
    matrix = np.array([[x, y, 1 - x - y] for x, y in corners]).T
    result: NDArray[np.float64] = matrix * np.linalg.solve(matrix, _xyz(*white))
    return result


def _between(source: Points, target: Points) -> Floats:
    """Linear RGB of `source` to that of `target`, whose white is D65."""
    matrix: Floats = (np.linalg.inv(_to_xyz(target)) @ _to_d65(source)).astype(np.float32)
    return matrix


def _to_d65(points: Points) -> NDArray[np.float64]:
    """Linear RGB to XYZ, white moved to D65 (Bradford)."""
    source, target = (_BRADFORD @ _xyz(*white) for white in (_pairs(points)[0], _D65))
    moved = np.linalg.inv(_BRADFORD) @ np.diag(target / source) @ _BRADFORD
    result: NDArray[np.float64] = moved @ _to_xyz(points)
    return result
