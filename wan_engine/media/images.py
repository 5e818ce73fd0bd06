"""From bytes of a stranger to an upright 8-bit RGB picture, and from that to a model's size.

The content decides, never a name or a declared type. Every limit is checked before pixels are
decoded.
"""

from __future__ import annotations

import io
import logging
import re
import struct
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from wan_engine.errors import InvalidMedia

log = logging.getLogger(__name__)

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_WEBP_HEADER_BYTES = 30
_MAX_SCANS = 100  # encoders write ten; each may cost 60 ms at 8000x8000 and needs 95 bytes
# A marker with a length, or the end: no stuffed zero, restart (d0 to d7) or second start (d8).
_JPEG_MARKER = re.compile(rb"\xff+[\x02-\xcf\xd9-\xfe]")
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageLimits:
    """Smallest and largest side in pixels."""

    min_side: int = 240
    max_side: int = 8000


def open_image(data: bytes, limits: ImageLimits, *, first_frame: bool = False) -> Image.Image:
    """The picture in `data`: EXIF orientation applied, alpha on white, sRGB, mode RGB.

    Raises `InvalidMedia` for other formats, animations, sides outside `limits` and damaged files.
    With `first_frame`, GIF is a format too, and of an animation its first frame is taken.
    """
    formats = (*_FORMATS, "GIF") if first_frame else _FORMATS
    try:
        _check_size(
            _webp_size(data), limits
        )  # Pillow prepares a WEBP canvas before it can be asked
        image = Image.open(io.BytesIO(data), formats=formats)
        _check_size(image.size, limits)
        # MPO is a JPEG with further pictures after it, as phones make them; the first one is meant.
        if not first_frame and image.format != "MPO" and getattr(image, "is_animated", False):
            raise InvalidMedia("image", "animated images are not supported")
        if image.format in ("JPEG", "MPO") and _scans(data) > _MAX_SCANS:
            raise InvalidMedia("image", "the image is damaged")
        image.load()
        return _rgb(_upright(image))
    except (InvalidMedia, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidMedia("image", "the image has too many pixels") from error
    except UnidentifiedImageError as error:
        known = f"{', '.join(formats[:-1])} or {formats[-1]}"
        raise InvalidMedia("image", f"the file is not a {known} image") from error
    except Exception as error:
        # Pillow answers damaged files with almost any exception: OSError, struct.error ...
        raise InvalidMedia("image", "the image is damaged") from error


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of `image` in the shape of `width` x `height`, scaled to it. Never stretched."""
    return ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)


def _check_size(size: tuple[int, int] | None, limits: ImageLimits) -> None:
    if size is not None and not all(limits.min_side <= side <= limits.max_side for side in size):
        allowed = f"{limits.min_side} to {limits.max_side} pixels"
        raise InvalidMedia("image", f"each side must be {allowed}, got {size[0]}x{size[1]}")


def _scans(data: bytes) -> int:
    """Passes over the picture in a JPEG, up to its end; other pictures or films may follow.

    Finds its way as Pillow does, past fill bytes and whatever lies between the segments.
    """
    at, scans = 2, 0
    while found := _JPEG_MARKER.search(data, at):
        marker = data[found.end() - 1]
        if marker == _JPEG_END:
            break
        scans += marker == _JPEG_SCAN
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    return scans


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Canvas size from a WEBP header (developers.google.com/speed/webp/docs/riff_container)."""
    if len(data) < _WEBP_HEADER_BYTES or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        sides = data[26:28], data[28:30]
        width, height = (int.from_bytes(side, "little") & 0x3FFF for side in sides)
        return width, height
    return None


def _upright(image: Image.Image) -> Image.Image:
    """Not `ImageOps.exif_transpose`: it writes all other tags back and fails where one is odd."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 0)
        method = _UPRIGHT.get(orientation)
    except (
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        struct.error,
    ):
        log.debug("EXIF of the image could not be read", exc_info=True)
        return image
    return image if method is None else image.transpose(method)


def _rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        # 16 bits a sample: the high byte. Pillow's own conversion would clip at 255.
        clear = image.info.get("transparency")
        samples = np.asarray(image)
        high = (samples.clip(0, 0xFFFF) >> 8).astype(np.uint8)
        if isinstance(clear, int):
            high[samples == clear] = 255
        image = Image.fromarray(high).convert("RGB")
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        image = Image.alpha_composite(white, opaque).convert("RGB")
    elif image.mode not in ("RGB", "CMYK"):
        image = image.convert("RGB")
    return _srgb(image, profile)


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours as an sRGB screen shows them: phones save Display P3, print files CMYK."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            log.debug("colour profile of the image was not usable", exc_info=True)
    return image.convert("RGB")
