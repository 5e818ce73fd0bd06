"""`open_image` with files that strangers may send, and `fit`. Files are made here, byte by byte
where no library writes them."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw

from tests.media.odd_pictures import display_p3, encoded, png_chunk, with_chunks
from wan_engine.errors import InvalidMedia
from wan_engine.media.images import ImageLimits, fit, open_image

LIMITS = ImageLimits()
OTHER_FORMAT = "Invalid image URL: the file is not a JPEG, PNG, BMP or WEBP image"
ANIMATED = "Invalid image URL: animated images are not supported"
TOO_MANY = "Invalid image URL: the image has too many pixels"
DAMAGED = "Invalid image URL: the image is damaged"
WHITE, RED = (255, 255, 255), (255, 0, 0)
SIDE = 240
RED_ROW = b"\xff\0\0" * SIDE
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
ORIENTATION_SIX = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)

# Pillow warns of a picture between one and two times its own limit, and of broken EXIF.
pytestmark = [
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
]
fuzz = settings(max_examples=100, deadline=None, database=None)

Pixel = tuple[int, int, int]


# --- files ---------------------------------------------------------------------------------------


def png(size: tuple[int, int], depth: int, colour: int, row: bytes, extra: bytes = b"") -> bytes:
    """A PNG whose rows, at most 8000, are all `row`. Pillow writes neither 16-bit colour nor wrong
    sizes."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    rows = zlib.compress((b"\0" + row) * min(size[1], 8000), 1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + extra
        + png_chunk(b"IDAT", rows)
        + png_chunk(b"IEND", b"")
    )


def png16(colour: int, samples: list[int], extra: bytes = b"") -> bytes:
    """A 240x240 PNG of one 16-bit colour."""
    return png((SIDE, SIDE), 16, colour, struct.pack(f">{len(samples)}H", *samples) * SIDE, extra)


def webp_lossless(width: int, height: int) -> bytes:
    """A whole WEBP of transparent black: after the size, five codes of one symbol and no pixels."""
    bits = 0x2F | (width - 1) << 8 | (height - 1) << 22 | 1 << 36 | 0x11111 << 43
    body = b"WEBPVP8L" + struct.pack("<I", 12) + bits.to_bytes(12, "little")
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_extended_header(width: int, height: int) -> bytes:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + sides
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_lossy_header(width: int, height: int) -> bytes:
    body = b"WEBPVP8 " + struct.pack("<I", 10) + b"\x10\0\0\x9d\x01\x2a"
    body += struct.pack("<HH", width, height)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def exif(*entries: bytes, tail: bytes = b"") -> bytes:
    """A little-endian EXIF block. `tail` lies at offset 14 + 12 * len(entries)."""
    count = struct.pack("<H", len(entries))
    return b"Exif\0\0II*\0\x08\0\0\0" + count + b"".join(entries) + bytes(4) + tail


def plain(
    colour: str | tuple[int, ...] = "red", mode: str = "RGB", side: int = SIDE
) -> Image.Image:
    return Image.new(mode, (side, side), colour)


def corners() -> Image.Image:
    """320x240 with a colour in each quarter: red, green, blue, yellow, starting at the top left."""
    image = Image.new("RGB", (320, 240))
    draw = ImageDraw.Draw(image)
    for box, colour in (
        ((0, 0, 160, 120), (255, 0, 0)),
        ((160, 0, 320, 120), (0, 255, 0)),
        ((0, 120, 160, 240), (0, 0, 255)),
        ((160, 120, 320, 240), (255, 255, 0)),
    ):
        draw.rectangle(box, colour)
    return image


def quarters(image: Image.Image) -> list[Pixel]:
    """The colours of the corners, with each channel rounded to 0 or 255."""
    width, height = image.size
    points = [(x, y) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    return [tuple(255 * (value > 127) for value in image.getpixel(point)) for point in points]


def opened(data: bytes) -> Image.Image:
    image = open_image(data, LIMITS)
    assert image.mode == "RGB"
    return image


def pixel(data: bytes) -> Pixel:
    return opened(data).getpixel((0, 0))


def near(found: Pixel, wanted: Pixel, levels: int = 2) -> bool:
    return all(abs(a - b) <= levels for a, b in zip(found, wanted, strict=True))


def refusal(data: bytes, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(InvalidMedia) as caught:
        open_image(data, limits)
    assert caught.value.field == "image"
    return str(caught.value)


def image_or_refusal(data: bytes) -> None:
    """Everything that damaged bytes may lead to."""
    try:
        assert opened(data).size[0] >= LIMITS.min_side
    except InvalidMedia as error:
        assert str(error).startswith("Invalid image URL: ")


# --- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_four_formats_are_known_by_their_content(kind: str) -> None:
    assert near(pixel(encoded(plain(), kind)), RED)


def test_the_pictures_of_the_data_folder_are_opened(data: Path) -> None:
    assert opened((data / "rocket_640x360.jpg").read_bytes()).size == (640, 360)
    assert opened((data / "astronaut_360x480.png").read_bytes()).size == (360, 480)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PDF", "ICO", "PPM", "TGA", "JPEG2000", "AVIF"])
def test_other_formats_are_refused(kind: str) -> None:
    assert refusal(encoded(plain(), kind)) == OTHER_FORMAT


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        bytes(1000),
        b"<svg xmlns='http://www.w3.org/2000/svg' width='300' height='300'/>",
        b"<!doctype html><title>404</title>",
        b"%PDF-1.7\n",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"BM",
        b"RIFF\x20\0\0\0WEBP",
    ],
    ids=["none", "NUL", "zeros", "svg", "html", "pdf", "jpeg", "png", "bmp", "webp"],
)
def test_a_file_that_is_not_a_picture_is_refused(data: bytes) -> None:
    assert refusal(data) == OTHER_FORMAT


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    frames = [plain(colour) for colour in ("red", "green", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert refusal(data) == ANIMATED


def test_an_animated_gif_is_refused_as_a_gif() -> None:
    data = encoded(plain(), "GIF", save_all=True, append_images=[plain("blue")])
    assert refusal(data) == OTHER_FORMAT


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_gives_its_first_frame_where_the_request_says_so(kind: str) -> None:
    frames = [plain(colour) for colour in ("red", "green", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).is_animated
    image = open_image(data, LIMITS, first_frame=True)
    assert (image.mode, image.size) == ("RGB", frames[0].size)
    assert near(image.getpixel((20, 20)), RED)


def test_a_gif_with_a_transparent_colour_is_on_white() -> None:
    image = Image.new("P", (SIDE, SIDE), 0)
    image.putpalette([255, 0, 0])
    data = encoded(image, "GIF", transparency=0)
    assert near(open_image(data, LIMITS, first_frame=True).getpixel((0, 0)), WHITE)


def test_gifs_have_the_same_limits_and_the_error_names_their_formats() -> None:
    with pytest.raises(InvalidMedia, match="each side must be 240 to 8000 pixels, got 9x9"):
        open_image(encoded(plain(side=9), "GIF"), LIMITS, first_frame=True)
    with pytest.raises(InvalidMedia, match="the file is not a JPEG, PNG, BMP, WEBP or GIF image"):
        open_image(b"%PDF-1.7", LIMITS, first_frame=True)
    with pytest.raises(InvalidMedia, match="the image is damaged"):
        open_image(encoded(plain(), "GIF")[:60], LIMITS, first_frame=True)


def test_a_png_with_one_animation_frame_is_a_picture() -> None:
    assert near(pixel(encoded(plain(), "PNG", save_all=True, append_images=[])), RED)


def test_a_phone_picture_that_contains_a_second_picture_is_the_first() -> None:
    data = encoded(plain(), "MPO", save_all=True, append_images=[plain("blue")])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert near(pixel(data), RED)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("guest", [b"<script>alert(1)</script>", b"GIF89a", b"PK\3\4", b"%PDF-1.7"])
def test_a_polyglot_file_is_the_picture_that_it_starts_with(kind: str, guest: bytes) -> None:
    assert near(pixel(encoded(plain(), kind) + guest), RED)


@pytest.mark.parametrize("host", [b"GIF89a", b"%PDF-1.7\n", b"II*\0", b"<html>"])
def test_a_picture_after_another_header_is_refused(host: bytes) -> None:
    assert refusal(host + encoded(plain(), "JPEG")) == OTHER_FORMAT


# --- orientation ---------------------------------------------------------------------------------

_UNDO = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What a camera does to the picture before it writes the orientation."""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_out_upright(kind: str, orientation: int) -> None:
    method = _UNDO[orientation]
    stored = corners() if method is None else corners().transpose(method)
    tags = Image.Exif()
    tags[0x112] = orientation
    image = opened(encoded(stored, kind, exif=tags))
    assert image.size == (320, 240)
    assert quarters(image) == quarters(corners())


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage!",
        exif(struct.pack("<HHIHH", 0x112, 3, 1, 0, 0)),
        exif(struct.pack("<HHIHH", 0x112, 3, 1, 9, 0)),
        exif(struct.pack("<HHI4s", 0x112, 2, 2, b"6\0")),
        exif(ORIENTATION_SIX)[:-6],
    ],
    ids=["empty", "garbage", "zero", "nine", "text", "cut"],
)
def test_exif_without_a_usable_orientation_leaves_the_picture_unchanged(block: bytes) -> None:
    assert opened(encoded(corners(), "JPEG", exif=block)).size == (320, 240)


@pytest.mark.parametrize(
    "entry",
    [
        struct.pack("<HHII", 0x11A, 5, 1, 99999),
        struct.pack("<HHII", 0x11B, 0, 1, 0),
        struct.pack("<HHII", 0x10F, 2, 0xFFFFFFFF, 8),
        struct.pack("<HHII", 0x8769, 4, 1, 8),
        struct.pack("<HHI4s", 0x8825, 2, 4, b"abc"),
    ],
    ids=["offset outside", "type 0", "count", "loop", "GPS text"],
)
def test_a_broken_tag_beside_the_orientation_is_ignored(entry: bytes) -> None:
    image = opened(encoded(corners(), "JPEG", exif=exif(ORIENTATION_SIX, entry)))
    assert image.size == (240, 320)


@pytest.mark.parametrize(
    "entry",
    [
        struct.pack("<HHII", 0x11A, 10, 1, 38),  # a resolution of -1/3, signed
        struct.pack("<HHIhh", 0x103, 8, 1, -1, 0),
        struct.pack("<HHIf", 0x128, 11, 1, 1e30),
        struct.pack("<HHII", 0x10F, 5, 1, 38),  # the maker's name as a fraction
    ],
    ids=["signed fraction", "signed", "float", "fraction for text"],
)
def test_a_tag_that_cannot_be_written_back_is_ignored(entry: bytes) -> None:
    block = exif(ORIENTATION_SIX, entry, tail=struct.pack("<ii", -1, 3))
    assert opened(encoded(corners(), "JPEG", exif=block)).size == (240, 320)


def xmp(text: str, coding: str = "utf-8") -> bytes:
    """An XMP packet with `text` in its description."""
    start, end = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>', '<?xpacket end="w"?>'
    names = 'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:t="http://ns.adobe.com/tiff/1.0/"'
    return f"{start}<x:xmpmeta><rdf:RDF><rdf:Description {names} {text}{end}".encode(coding)


ON_ITS_SIDE = xmp('tiff:Orientation="6"/>')


def with_xmp(
    kind: str, packet: bytes, image: Image.Image | None = None, **options: object
) -> bytes:
    image = image or corners()
    if kind != "PNG":
        return encoded(image, kind, xmp=packet, **options)
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + packet
    return with_chunks(encoded(image, kind, **options), (b"iTXt", text))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_in_xmp_comes_out_upright(kind: str, orientation: int) -> None:
    """Browsers ignore it, but the program that wrote it meant it."""
    method = _UNDO[orientation]
    stored = corners() if method is None else corners().transpose(method)
    image = opened(with_xmp(kind, xmp(f'tiff:Orientation="{orientation}"/>'), stored))
    assert image.size == (320, 240)
    assert quarters(image) == quarters(corners())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "packet",
    [
        ON_ITS_SIDE,
        xmp("tiff:Orientation='6'/>"),
        xmp('tiff:Orientation = "6"/>'),
        xmp("><tiff:Orientation>6</tiff:Orientation>"),
        xmp("><tiff:Orientation>\n  6\n</tiff:Orientation>"),
        xmp('t:Orientation="6"/>'),
        xmp('tiff:Orientation="6"/>', "utf-16"),
        xmp('tiff:Orientation="6"/>', "utf-32"),
    ],
    ids=[
        *("attribute", "single quotes", "spaces", "element", "line breaks", "another prefix"),
        *("UTF-16", "UTF-32"),
    ],
)
def test_every_spelling_of_an_orientation_in_xmp_is_read(kind: str, packet: bytes) -> None:
    assert opened(with_xmp(kind, packet)).size == (240, 320)


def test_an_orientation_in_compressed_xmp_is_read() -> None:
    text = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(ON_ITS_SIDE)
    data = with_chunks(encoded(corners(), "PNG"), (b"iTXt", text))
    assert opened(data).size == (240, 320)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_wins_over_xmp(kind: str) -> None:
    tags = Image.Exif()
    tags[0x112] = 1
    assert opened(with_xmp(kind, ON_ITS_SIDE, exif=tags)).size == (320, 240)
    tags[0x112] = 9  # no orientation
    assert opened(with_xmp(kind, ON_ITS_SIDE, exif=tags)).size == (240, 320)


@pytest.mark.parametrize(
    "packet",
    [
        *(b"", b"\xff" * 3000, xmp('tiff:Orientation="0"/>'), xmp('tiff:Orientation="66"/>')),
        *(xmp("tiff:Orientation="), xmp('nottiff:Orientation="6"/>'), b"tiff:Orientation"),
        b"<!DOCTYPE x [<!ENTITY a '6'>]>" + xmp('tiff:Orientation="&a;"/>'),
    ],
    ids=["empty", "bytes", "zero", "66", "cut", "other name", "name alone", "entity"],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_xmp_without_a_usable_orientation_leaves_the_picture_unchanged(
    kind: str, packet: bytes
) -> None:
    assert opened(with_xmp(kind, packet)).size == (320, 240)


def test_no_xmp_takes_long_to_parse() -> None:
    for start in (b'xmlns:t="http://ns.adobe.com/tiff/1.0/"', b"xmlns:", b"tiff:Orientation ="):
        packet = start * (60_000 // len(start))
        began = time.process_time()
        opened(with_xmp("JPEG", packet))
        opened(with_xmp("PNG", packet * 100))
        assert time.process_time() - began < 2


@fuzz
@given(st.data())
def test_damaged_exif_never_fails_the_picture(draw: st.DataObject) -> None:
    block = bytearray(exif(ORIENTATION_SIX, struct.pack("<HHII", 0x8769, 4, 1, 38), tail=bytes(40)))
    for _ in range(draw.draw(st.integers(1, 4))):
        block[draw.draw(st.integers(6, len(block) - 1))] = draw.draw(st.integers(0, 255))
    image_or_refusal(encoded(corners(), "JPEG", exif=bytes(block)))


# --- colours -------------------------------------------------------------------------------------

_PALETTE = png_chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0]))


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (encoded(plain((255, 0, 0, 0), "RGBA"), "PNG"), WHITE),
        (encoded(plain((255, 0, 0, 128), "RGBA"), "PNG"), (255, 127, 127)),
        (encoded(plain((255, 0, 0, 128), "RGBA"), "WEBP", lossless=True), (255, 127, 127)),
        (encoded(plain((0, 128), "LA"), "PNG"), (127, 127, 127)),
        (png((SIDE, SIDE), 8, 3, bytes(SIDE), _PALETTE + png_chunk(b"tRNS", b"\0")), WHITE),
        (
            png((SIDE, SIDE), 8, 3, bytes(SIDE), _PALETTE + png_chunk(b"tRNS", b"\x80")),
            (255, 127, 127),
        ),
        (png((SIDE, SIDE), 8, 0, bytes(SIDE), png_chunk(b"tRNS", b"\0\0")), WHITE),
        (png((SIDE, SIDE), 1, 0, bytes(SIDE // 8), png_chunk(b"tRNS", b"\0\0")), WHITE),
        (
            png(
                (SIDE, SIDE),
                8,
                2,
                RED_ROW,
                png_chunk(b"tRNS", b"\0\xff\0\0\0\0"),
            ),
            WHITE,
        ),
        (png16(4, [0, 32768]), (127, 127, 127)),
        (png16(6, [65535, 0, 0, 32768]), (255, 127, 127)),
        (png16(2, [65535, 0, 0], png_chunk(b"tRNS", b"\xff\xff\0\0\0\0")), WHITE),
    ],
    ids=[
        *("RGBA clear", "RGBA half", "RGBA half WEBP", "LA half", "palette clear", "palette half"),
        *("grey key", "1-bit key", "RGB key", "LA 16-bit", "RGBA 16-bit", "RGB 16-bit key"),
    ],
)
def test_transparency_is_shown_on_white(data: bytes, wanted: Pixel) -> None:
    assert near(pixel(data), wanted)


@pytest.mark.parametrize("value", [0, 777, 32768, 51400, 65535])
def test_sixteen_bits_are_scaled_and_not_clipped(value: int) -> None:
    grey = value >> 8
    assert near(pixel(png16(0, [value])), (grey, grey, grey), 1)
    assert near(pixel(png16(2, [value, 65535, 0])), (grey, 255, 0), 1)


def test_sixteen_bit_grey_with_a_transparent_grey_is_scaled_too() -> None:
    assert near(pixel(png16(0, [32768], png_chunk(b"tRNS", b"\0\0"))), (128, 128, 128))


def test_one_and_two_bits_are_scaled() -> None:
    image = opened(png((SIDE, SIDE), 1, 0, b"\xf0" * (SIDE // 8)))
    assert [image.getpixel((x, 0)) for x in (0, 4)] == [WHITE, (0, 0, 0)]
    image = opened(png((SIDE, SIDE), 2, 0, b"\x1b" * (SIDE // 4)))
    assert [image.getpixel((x, 0))[0] for x in range(4)] == [0, 85, 170, 255]
    assert pixel(encoded(plain(1, "1"), "BMP")) == WHITE


@pytest.mark.parametrize("mode", ["L", "P"])
def test_grey_and_palette_become_rgb(mode: str) -> None:
    source = plain((120, 120, 120)).convert(mode, palette=Image.Palette.ADAPTIVE)
    assert near(pixel(encoded(source, "PNG")), (120, 120, 120))


def test_cmyk_becomes_rgb() -> None:
    assert near(pixel(encoded(plain((0, 255, 255, 0), "CMYK"), "JPEG")), RED)


def test_a_colour_profile_is_applied() -> None:
    # (200, 50, 50) of Display P3 on an sRGB screen, computed with the two matrices.
    data = encoded(plain((200, 50, 50)), "PNG", icc_profile=display_p3())
    assert near(pixel(data), (218, 24, 40), 3)
    same = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert near(pixel(encoded(plain((200, 50, 50)), "PNG", icc_profile=same)), (200, 50, 50), 1)


def test_a_profile_and_transparency_work_together() -> None:
    data = encoded(plain((200, 50, 50, 0), "RGBA"), "PNG", icc_profile=display_p3())
    assert near(pixel(data), WHITE, 1)


@pytest.mark.parametrize(
    "profile",
    [
        b"garbage" * 30,
        display_p3()[:200],
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    ],
    ids=["garbage", "cut", "of another colour space"],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_useless_profile_is_ignored(profile: bytes, kind: str) -> None:
    assert near(pixel(encoded(plain((200, 50, 50)), kind, icc_profile=profile)), (200, 50, 50), 5)


def test_an_rgb_profile_in_a_cmyk_picture_is_ignored() -> None:
    data = encoded(plain((0, 255, 255, 0), "CMYK"), "JPEG", icc_profile=display_p3())
    assert near(pixel(data), RED)


# --- limits --------------------------------------------------------------------------------------


def test_a_side_below_the_limit_is_refused() -> None:
    assert opened(png((240, 240), 8, 0, bytes(240))).size == (240, 240)
    for size in ((239, 240), (240, 239), (1, 1)):
        why = f"each side must be 240 to 8000 pixels, got {size[0]}x{size[1]}"
        assert refusal(png(size, 8, 0, bytes(size[0]))) == f"Invalid image URL: {why}"


def test_a_side_over_the_limit_is_refused() -> None:
    assert opened(png((8000, 240), 1, 0, bytes(1000))).size == (8000, 240)
    assert opened(png((240, 8000), 1, 0, bytes(30))).size == (240, 8000)
    for size in ((8001, 240), (240, 8001)):
        data = png(size, 1, 0, bytes((size[0] + 7) // 8))
        assert f"got {size[0]}x{size[1]}" in refusal(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_has_the_same_limits(kind: str) -> None:
    limits = ImageLimits(min_side=16, max_side=64)
    assert open_image(encoded(plain(side=64), kind), limits).size == (64, 64)
    for side in (15, 65):
        sentence = refusal(encoded(plain(side=side), kind), limits)
        assert sentence.endswith(f"each side must be 16 to 64 pixels, got {side}x{side}")


@pytest.mark.parametrize("header", [webp_lossless, webp_extended_header, webp_lossy_header])
@pytest.mark.parametrize("size", [(8001, 240), (240, 8001), (239, 240), (16383, 16383)])
def test_a_webp_header_is_enough_to_refuse_a_size(
    header: Callable[[int, int], bytes], size: tuple[int, int]
) -> None:
    assert f"got {size[0]}x{size[1]}" in refusal(header(*size))


def test_a_webp_header_with_a_wrong_size_is_refused() -> None:
    data = bytearray(encoded(plain(side=300), "WEBP", exif=Image.Exif().tobytes(), lossless=True))
    data[24:30] = webp_extended_header(8000, 8000)[24:30]
    image_or_refusal(bytes(data))


_MEASURE = """
import sys
from wan_engine.errors import InvalidMedia
from wan_engine.media.images import ImageLimits, open_image

def peak():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1])

data = sys.stdin.buffer.read()
before = peak()
try:
    open_image(data, ImageLimits())
except InvalidMedia as error:
    print(peak() - before, error)
"""


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (webp_lossless(16383, 16383), "got 16383x16383"),
        (webp_extended_header(16383, 16383), "got 16383x16383"),
        (png((50_000, 50_000), 1, 0, b""), "too many pixels"),
        (png((2**31 - 1, 2**31 - 1), 8, 6, b""), "too many pixels"),
    ],
    ids=["webp lossless", "webp extended", "png", "png, largest"],
)
def test_a_huge_picture_is_refused_without_its_memory(data: bytes, sentence: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _MEASURE]
    done = subprocess.run(command, input=data, capture_output=True, check=True, timeout=60)
    kib, _, message = done.stdout.decode().partition(" ")
    assert sentence in message
    assert int(kib) < 8 * 1024


@pytest.mark.parametrize("side", [10_000, 13_000])
def test_a_side_over_the_limit_is_named_where_pillow_only_warns(side: int) -> None:
    assert f"got {side}x{side}" in refusal(png((side, side), 1, 0, b""))


def test_a_decompression_bomb_is_refused() -> None:
    assert refusal(png((50_000, 50_000), 1, 0, b"")) == TOO_MANY


@pytest.mark.parametrize(
    "between",
    [
        b"",
        b"\xff\xff",
        b"junk",
        b"\xff\xd3",
        b"\xff\xe5\0\x02",
        pytest.param(b"\xff\xe5\0\x02junk"),
        pytest.param(b"\xff\x01"),
    ],
    ids=["nothing", "fill bytes", "junk", "restart", "comment", "comment and junk", "TEM"],
)
def test_a_jpeg_with_thousands_of_scans_is_refused(between: bytes) -> None:
    # 95 bytes a scan cost 60 ms at 8000x8000 (Pillow 13.0.0, one core): 20 MB would take hours.
    data = encoded(Image.new("L", (SIDE, SIDE), 128), "JPEG", progressive=True)
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    refusal(data[:-2] + (between + last_scan) * 5000 + b"\xff\xd9")


@pytest.mark.parametrize("progressive", [False, True])
def test_bytes_after_the_end_of_a_jpeg_are_not_counted(progressive: bool) -> None:
    """Phones append films to their pictures, and any two bytes occur in a film."""
    data = encoded(plain(), "JPEG", progressive=progressive)
    assert near(pixel(data + b"\xff\xda\0\x08" * 5000), RED)


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_file_is_refused(kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    for tenth in range(10):
        assert refusal(data[: len(data) * tenth // 10]) in (OTHER_FORMAT, DAMAGED)


def waves(width: int = 301) -> Image.Image:
    rows, columns = np.mgrid[:241, :width]
    waves = [127 + 120 * np.sin(columns / 17 + rows / 31), 127 + 120 * np.cos(rows / 9)]
    return Image.fromarray(np.stack([*waves, waves[0]], 2).astype(np.uint8))


@pytest.mark.parametrize("options", [{"lossless": True}, {}, {"quality": 95}], ids=str)
def test_a_webp_without_its_size_or_its_end_is_accepted(options: dict[str, object]) -> None:
    data = encoded(waves(), "WEBP", **options)
    noted = encoded(waves(), "WEBP", exif=b"Exif\0\0II*\0" + bytes(301), **options)
    whole = np.asarray(opened(data))
    unpadded = data[:-1] if data[16] % 2 else data
    larger = data[:4] + struct.pack("<I", len(data) + 92) + data[8:]
    for file in (unpadded, larger, larger + b"ANIM\x40\0\0\0junk", noted[:-1], noted[:-200]):
        assert np.array_equal(opened(file), whole)
    for lost in (2, 3, 10, len(data) // 2):
        assert refusal(data[:-lost]) == DAMAGED
        cut = data[:-lost]
        assert refusal(cut[:4] + struct.pack("<I", len(cut) - 8) + cut[8:]) == DAMAGED


@pytest.mark.parametrize("width", [301, 302, 303])
def test_a_bmp_needs_its_pixels_and_not_its_last_padding(width: int) -> None:
    data = encoded(waves(width), "BMP")
    padding = -3 * width % 4
    for lost in range(padding + 1):
        assert np.array_equal(opened(data[: len(data) - lost]), np.asarray(waves(width)))
    assert refusal(data[: -padding - 1]) == DAMAGED


@pytest.mark.parametrize("kind", FORMATS)
@fuzz
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1))
def test_flipped_bits_give_a_picture_or_a_refusal(
    kind: str, flips: list[tuple[float, int]]
) -> None:
    data = bytearray(encoded(corners(), kind))
    for place, bit in flips:
        data[int(place * len(data))] ^= 1 << bit
    image_or_refusal(bytes(data))


@fuzz
@given(st.sampled_from(FORMATS), st.binary(max_size=2000))
def test_any_bytes_after_a_header_give_a_picture_or_a_refusal(kind: str, body: bytes) -> None:
    image_or_refusal(encoded(plain(), kind)[:40] + body)


@fuzz
@given(st.binary(max_size=500))
def test_any_bytes_are_refused(data: bytes) -> None:
    assert refusal(data)


# --- fit to a size -------------------------------------------------------------------------------


def disc(width: int, height: int, radius: int) -> Image.Image:
    rows, columns = np.ogrid[:height, :width]
    inside = (columns - (width - 1) / 2) ** 2 + (rows - (height - 1) / 2) ** 2 <= radius**2
    return Image.fromarray(inside.astype(np.uint8) * 255).convert("RGB")


@pytest.mark.parametrize("source", [(640, 360), (360, 640), (500, 500), (1000, 241), (241, 1000)])
@pytest.mark.parametrize("target", [(256, 144), (144, 256), (832, 480), (240, 240)])
def test_a_circle_stays_round_and_in_the_middle(
    source: tuple[int, int], target: tuple[int, int]
) -> None:
    image = fit(disc(*source, radius=100), *target)
    assert image.size == target
    rows, columns = np.nonzero(np.asarray(image)[:, :, 0] > 127)
    scale = max(target[0] / source[0], target[1] / source[1])
    seen_high = min(200 * scale, target[1])  # a wide target shows less than the whole disc
    seen_wide = min(200 * scale, target[0])
    assert abs(np.ptp(columns) + 1 - seen_wide) <= 1 + scale
    assert abs(np.ptp(rows) + 1 - seen_high) <= 1 + scale
    assert abs(columns.mean() - (target[0] - 1) / 2) < 1
    assert abs(rows.mean() - (target[1] - 1) / 2) < 1


def test_an_overhang_is_cropped_equally_on_both_sides() -> None:
    image = Image.new("RGB", (400, 200), "red")
    image.paste("green", (100, 0, 300, 200))
    pixels = np.asarray(fit(image, 100, 100))
    assert np.array_equal(pixels, pixels[:, ::-1])
    assert np.all(pixels[:, 5:95] == (0, 128, 0))  # beside it, the filter's rim at the two edges


def test_a_picture_of_the_target_size_is_not_changed() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (144, 256, 3), np.uint8)
    assert np.array_equal(np.asarray(fit(Image.fromarray(noise), 256, 144)), noise)


@settings(max_examples=60, deadline=None, database=None)
@given(*[st.integers(1, 400)] * 4)
def test_the_size_is_exact(width: int, height: int, to_width: int, to_height: int) -> None:
    assert fit(Image.new("RGB", (width, height)), to_width, to_height).size == (to_width, to_height)
