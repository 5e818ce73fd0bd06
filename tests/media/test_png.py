"""PNG files with long, broken or missing parts beside the picture. As in browsers, parts that do
not make up the picture never fail it."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.media.odd_pictures import (
    colour_ramps,
    display_p3,
    embedded,
    encoded,
    gamma,
    png_chunk,
    with_chunks,
)
from wan_engine.errors import InvalidMedia
from wan_engine.media.images import ImageLimits, open_image

END = png_chunk(b"IEND", b"")
PLAIN = encoded(colour_ramps(), "PNG")


def opened(data: bytes) -> np.ndarray:
    return np.asarray(open_image(data, ImageLimits()))


def broken(chunk: tuple[bytes, bytes]) -> bytes:
    whole = bytearray(png_chunk(*chunk))
    whole[-1] ^= 1
    return bytes(whole)


def behind_header(chunk: bytes) -> bytes:
    return PLAIN[:33] + chunk + PLAIN[33:]


ZEROS = zlib.compress(bytes(50 * 2**20), 1)
BESIDE = {
    "a text of 3 MB": with_chunks(PLAIN, (b"tEXt", b"workflow\0" + b"x" * 3_000_000)),
    "packed text of 50 MB": with_chunks(PLAIN, (b"zTXt", b"a\0\0" + ZEROS)),
    "packed XMP of 50 MB": with_chunks(PLAIN, (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + ZEROS)),
    "a profile of 50 MB": with_chunks(PLAIN, (b"iCCP", b"x\0\0" + ZEROS)),
    "a profile that is not zlib": with_chunks(PLAIN, (b"iCCP", b"x\0\0nothing")),
    "a profile without a name": with_chunks(PLAIN, (b"iCCP", b"")),
    "a truncated text": with_chunks(PLAIN, (b"iTXt", b"x")),
    "a broken profile": behind_header(broken(embedded(display_p3()))),
    "a broken gamma": behind_header(broken(gamma(100_000))),
    "a broken transparency": behind_header(broken((b"tRNS", bytes(6)))),
    "a broken EXIF": behind_header(broken((b"eXIf", b"II*\0"))),
    "a short gamma": with_chunks(PLAIN, (b"gAMA", b"\0")),
    "a short cHRM": with_chunks(PLAIN, gamma(45_455), (b"cHRM", b"\0")),
    "an empty pHYs": with_chunks(PLAIN, (b"pHYs", b"")),
    "an unknown chunk": with_chunks(PLAIN, (b"prVt", b"x" * 100)),
    "no end": PLAIN[:-12],
    "a cut end": PLAIN[:-5],
    "a broken end": PLAIN[:-1] + b"x",
    "junk instead of the end": PLAIN[:-12] + b"junk" * 10,
    "zeros instead of the end": PLAIN[:-12] + bytes(4000),
    "junk after the end": PLAIN + b"junk" * 10,
    "data without a checksum": PLAIN[:-16],
}


@pytest.mark.parametrize("name", BESIDE)
def test_other_chunks_never_fail_the_picture(name: str) -> None:
    assert np.array_equal(opened(BESIDE[name]), np.asarray(colour_ramps()))


@pytest.mark.parametrize("lost", [28, 40, 200, 1000])
@pytest.mark.parametrize("tail", [b"", bytes(30), END], ids=["", "zeros", "end"])
def test_a_cut_within_the_picture_is_refused(lost: int, tail: bytes) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (240, 256, 3), np.uint8)
    data = encoded(Image.fromarray(noise), "PNG")
    with pytest.raises(InvalidMedia, match="damaged"):
        opened(data[:-lost] + tail)


def test_an_animation_without_its_end_is_refused_as_an_animation() -> None:
    frames = [Image.new("RGB", (240, 240), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    for file in (data, data[:-12]):
        with pytest.raises(InvalidMedia, match="animated"):
            opened(file)
        assert tuple(np.asarray(open_image(file, ImageLimits(), first_frame=True))[0, 0]) == (
            255,
            0,
            0,
        )


def test_a_chunk_that_claims_more_bytes_than_there_are() -> None:
    claims = struct.pack(">I", 2**32 - 1) + b"tEXt" + b"x" * 50
    assert np.array_equal(opened(PLAIN[:-12] + claims), np.asarray(colour_ramps()))


# --- rows ----------------------------------------------------------------------------------------

KINDS = [
    *((depth, 0, 1) for depth in (1, 2, 4, 8, 16)),
    *((depth, 2, 3) for depth in (8, 16)),
    *((depth, 3, 1) for depth in (1, 2, 4, 8)),
    *((depth, 4, 2) for depth in (8, 16)),
    *((depth, 6, 4) for depth in (8, 16)),
]
WIDTH, HEIGHT = 243, 241
ADAM7 = [
    *(np.s_[::8, ::8], np.s_[::8, 4::8], np.s_[4::8, ::4], np.s_[::4, 2::4]),
    *(np.s_[2::4, ::2], np.s_[::2, 1::2], np.s_[1::2, ::1]),
]


def rows(depth: int, samples: int, interlaced: bool) -> bytes:
    """Unpacked rows, each after a filter byte of "none": a picture of all ones."""
    places = np.zeros((HEIGHT, WIDTH))
    parts = [places[part] for part in ADAM7] if interlaced else [places]
    return b"".join(
        (b"\0" + b"\xff" * ((part.shape[1] * depth * samples + 7) // 8)) * part.shape[0]
        for part in parts
    )


def png_of(data: bytes, depth: int, colour: int, interlaced: bool, *, piece: int = 2**20) -> bytes:
    """A file with `data` as its compressed rows, in chunks of `piece` bytes."""
    header = struct.pack(">2I5B", WIDTH, HEIGHT, depth, colour, 0, 0, interlaced)
    palette = png_chunk(b"PLTE", b"\xff" * 3 * 2**depth) if colour == 3 else b""
    starts = range(0, len(data), piece)
    pieces = b"".join(png_chunk(b"IDAT", data[start : start + piece]) for start in starts)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + palette + pieces + END


def refused(data: bytes) -> bool:
    try:
        opened(data)
    except InvalidMedia as error:
        assert str(error) == "Invalid image URL: the image is damaged"
        return True
    return False


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("depth", "colour", "samples"), KINDS)
def test_all_rows_must_be_there(depth: int, colour: int, samples: int, interlaced: bool) -> None:
    whole = rows(depth, samples, interlaced)
    for level, piece in ((0, 2**20), (9, 2**20), (9, 7)):
        for more in (b"", b"\0", bytes(5000)):
            packed = zlib.compress(whole + more, level)
            assert (opened(png_of(packed, depth, colour, interlaced, piece=piece)) == 255).all()
        for length in (0, 1, len(whole) // 2, len(whole) - WIDTH // 8, len(whole) - 1):
            packed = zlib.compress(whole[:length], level)
            assert refused(png_of(packed, depth, colour, interlaced, piece=piece)), length


def test_every_picture_that_pillow_writes_has_all_its_rows() -> None:
    ramps = colour_ramps()
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        for options in ({}, {"compress_level": 0}, {"optimize": True}):
            picture = ramps.convert("L").convert(mode) if mode == "I;16" else ramps.convert(mode)
            assert not refused(encoded(picture, "PNG", **options)), (mode, options)


@pytest.mark.parametrize("level", [0, 1, 6, 9])
@pytest.mark.parametrize("damage", [bytes(2000), b"<p>Not found</p>" * 125, b""], ids=len)
def test_damage_within_the_rows_is_refused(level: int, damage: bytes) -> None:
    noise = np.random.default_rng(1).integers(0, 16, (240, 256, 3), np.uint8)
    data = encoded(Image.fromarray(noise), "PNG", compress_level=level)
    half = len(data) // 2
    assert not refused(data)
    assert refused(data[:half] + damage + data[half + 2000 :])


def test_rows_without_their_last_checksum_are_accepted() -> None:
    packed = zlib.compress(rows(8, 3, False))
    for lost in (1, 4):
        assert not refused(png_of(packed[:-lost], 8, 2, False))


def test_an_animation_needs_the_rows_of_its_first_frame() -> None:
    frames = [Image.new("RGB", (240, 240), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    open_image(data, ImageLimits(), first_frame=True)
    start = data.index(b"IDAT") - 4
    length = int.from_bytes(data[start : start + 4])
    half = png_chunk(b"IDAT", zlib.compress(bytes(721 * 120)))
    with pytest.raises(InvalidMedia, match="damaged"):
        cut = data[:start] + half + data[start + 12 + length :]
        open_image(cut, ImageLimits(), first_frame=True)


def test_rows_that_never_end_are_not_kept_in_memory() -> None:
    """300 MB after a picture of 0.2 MB."""
    packed = zlib.compress(rows(8, 3, False) + bytes(300 * 2**20))
    tracemalloc.start()
    try:
        assert not refused(png_of(packed, 8, 2, False))
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()
