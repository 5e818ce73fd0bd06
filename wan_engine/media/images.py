"""Decodes an untrusted image into an upright 8-bit RGB picture, and fits it to a model's size.

The content decides the format, never a name or a declared type. Every limit is checked before
pixels are decoded.
"""

from __future__ import annotations

import io
import logging
import re
import struct
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from wan_engine.errors import InvalidMedia
from wan_engine.media import colours, jpeg, png
from wan_engine.media.colours import Space

log = logging.getLogger(__name__)

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_WEBP_HEADER_BYTES = 30
_RIFF_HEADER_BYTES = 12
_BMP_V5_HEADER_BYTES = 124
_TIFF_NAMESPACE = re.compile(
    rb"""xmlns:(\w{1,40})\s*=\s*["']http://ns\.adobe\.com/tiff/1\.0/["']"""
)
_XMP_ORIENTATION = rb"""\b%b:Orientation\s*(?:=\s*["']|>)\s*([1-8])\s*["'<]"""
_XMP_BYTES = 256 * 1024
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


class NotAnImage(InvalidMedia):
    """The file has no format that this project reads."""


def open_image(data: bytes, limits: ImageLimits, *, first_frame: bool = False) -> Image.Image:
    """The picture in `data`: EXIF or XMP orientation applied, in sRGB, alpha on white, mode RGB.

    Raises `InvalidMedia` for other formats, animations, sides outside `limits` and damaged files.
    With `first_frame`, GIF is accepted too, and the first frame of an animation is taken.
    """
    formats = (*_FORMATS, "GIF") if first_frame else _FORMATS
    try:
        # Pillow allocates a WEBP canvas before its size can be checked.
        _check_size(_webp_size(data), limits)
        space = None
        if data.startswith(png.SIGNATURE):
            space, data = png.space_of(data), png.picture_alone(data)
        image: Image.Image = Image.open(io.BytesIO(_mended_webp(data)), formats=formats)
        _check_size(image.size, limits)
        # MPO is a JPEG followed by more pictures, as phones make them. The first one counts.
        if not first_frame and image.format != "MPO" and getattr(image, "is_animated", False):
            raise InvalidMedia("image", "animated images are not supported")
        if image.format in ("JPEG", "MPO"):
            image = _whole_jpeg(data)
        image.load()
        if image.format == "PNG":
            png.check_complete(data)
        if png.has_grey_and_alpha(data):  # Pillow makes colours from 16-bit grey with alpha
            image = image.convert("LA")
        return _rgb(_upright(image), space or image.info.get("icc_profile") or _bmp_profile(data))
    except (InvalidMedia, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidMedia("image", "the image has too many pixels") from error
    except UnidentifiedImageError as error:
        known = f"{', '.join(formats[:-1])} or {formats[-1]}"
        raise NotAnImage("image", f"the file is not a {known} image") from error
    except Exception as error:
        # Pillow raises almost any exception for damaged files: OSError, struct.error ...
        raise InvalidMedia("image", "the image is damaged") from error


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of `image` in the shape of `width` x `height`, scaled to it. Never stretched."""
    return ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)


def _check_size(size: tuple[int, int] | None, limits: ImageLimits) -> None:
    if size is not None and not all(limits.min_side <= side <= limits.max_side for side in size):
        allowed = f"{limits.min_side} to {limits.max_side} pixels"
        raise InvalidMedia("image", f"each side must be {allowed}, got {size[0]}x{size[1]}")


def _whole_jpeg(data: bytes) -> Image.Image:
    """Decode a JPEG that is whole. Its end marker may be missing, but nothing before it."""
    structure = jpeg.read_structure(data)
    if len(structure.scans) > jpeg.MAX_SCANS:
        raise InvalidMedia("image", "the image is damaged")
    image = Image.open(io.BytesIO(jpeg.ended(data, structure)), formats=["JPEG"])
    image.load()
    jpeg.check_complete(image, data, structure)
    return image


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


def _mended_webp(data: bytes) -> bytes:
    """A WEBP with the size of the chunks that are present. Its last padding byte, or data after the
    picture, may be missing."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return data
    at, claimed = _RIFF_HEADER_BYTES, int.from_bytes(data[4:8], "little") + 8
    while at + 8 <= min(len(data), claimed):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + length > len(data):
            break
        at += 8 + length + length % 2
    if claimed <= len(data) or at == _RIFF_HEADER_BYTES:
        return data
    return data[:4] + (at - 8).to_bytes(4, "little") + data[8:at].ljust(at - 8, b"\0")


def _bmp_profile(data: bytes) -> bytes | None:
    """The profile in a BMP of version 5, which Pillow does not read."""
    if data[:2] != b"BM" or int.from_bytes(data[14:18], "little") != _BMP_V5_HEADER_BYTES:
        return None
    kind, offset, size = data[70:74], *struct.unpack_from("<2I", data, 126)
    return data[14 + offset : 14 + offset + size] if kind == b"DEBM" else None


def _upright(image: Image.Image) -> Image.Image:
    """Apply the orientation. `ImageOps.exif_transpose` would write all other tags back, and fail if
    one is odd."""
    # Pillow reads XMP too, and accepts values that are not orientations.
    image.info.pop("XML:com.adobe.xmp", None)
    packet = image.info.pop("xmp", b"")
    method = _UPRIGHT.get(_exif_orientation(image) or _xmp_orientation(packet))
    return image if method is None else image.transpose(method)


def _exif_orientation(image: Image.Image) -> int:
    """1 to 8, or 0 if there is none."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 0)
        return orientation if orientation in range(1, 9) else 0
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
        return 0


def _xmp_orientation(packet: bytes) -> int:
    """Like `_exif_orientation`. It searches instead of parsing, because XML from strangers can grow
    without end."""
    packet = packet[:_XMP_BYTES].replace(b"\0", b"")  # UTF-16 and UTF-32 become ASCII
    names = {*_TIFF_NAMESPACE.findall(packet)} or {b"tiff"}
    for name in names:
        if found := re.search(_XMP_ORIENTATION % re.escape(name), packet):
            return int(found[1])
    return 0


def _rgb(image: Image.Image, space: Space | None) -> Image.Image:
    """Convert colours first, then put transparency on white, as browsers do."""
    colour, alpha = _apart(image)
    picture = colours.to_srgb(colour, space)
    if alpha is None:
        return picture
    return Image.composite(picture, Image.new("RGB", picture.size, "white"), alpha)


def _apart(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The picture as L, RGB or CMYK, and the opacity of each pixel, 0 to 255."""
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):
        # 16 bits a sample: the high byte. Pillow's own conversion would clip at 255.
        samples = np.asarray(image)
        high = Image.fromarray((samples.clip(0, 0xFFFF) >> 8).astype(np.uint8))
        opaque = (samples != clear).astype(np.uint8) * 255
        return high, Image.fromarray(opaque) if isinstance(clear, int) else None
    alpha = None
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or clear is not None:
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
        if image.mode not in ("L", "1", "LA"):
            return rgba.convert("RGB"), alpha
    image.info.pop("transparency", None)
    if image.mode in ("1", "LA"):
        image = image.convert("L")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB"), alpha
