"""PNG files with something beside their picture that is long, broken or missing. So do browsers:
what does not make the picture never costs it."""

from __future__ import annotations

import struct
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


BESIDE = {
    "a text of 3 MB": with_chunks(PLAIN, (b"tEXt", b"workflow\0" + b"x" * 3_000_000)),
    "packed text of 50 MB": with_chunks(
        PLAIN, (b"zTXt", b"a\0\0" + zlib.compress(bytes(50 * 2**20)))
    ),
    "packed XMP of 50 MB": with_chunks(
        PLAIN, (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(50 * 2**20)))
    ),
    "a profile of 50 MB": with_chunks(PLAIN, embedded(bytes(50 * 2**20))),
    "a profile that is no zlib": with_chunks(PLAIN, (b"iCCP", b"x\0\0nothing")),
    "a profile of no name": with_chunks(PLAIN, (b"iCCP", b"")),
    "a text that is cut": with_chunks(PLAIN, (b"iTXt", b"x")),
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
    "junk in the place of the end": PLAIN[:-12] + b"junk" * 10,
    "zeros in the place of the end": PLAIN[:-12] + bytes(4000),
    "junk behind the end": PLAIN + b"junk" * 10,
    "no checksum of the data": PLAIN[:-16],
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_does_not_make_the_picture_never_costs_it(name: str) -> None:
    assert np.array_equal(opened(BESIDE[name]), np.asarray(colour_ramps()))


@pytest.mark.parametrize("lost", [28, 40, 200, 1000])
@pytest.mark.parametrize("tail", [b"", bytes(30), END], ids=["", "zeros", "end"])
def test_what_is_cut_within_the_picture_is_refused(lost: int, tail: bytes) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (240, 256, 3), np.uint8)
    data = encoded(Image.fromarray(noise), "PNG")
    with pytest.raises(InvalidMedia, match="damaged"):
        opened(data[:-lost] + tail)


def test_an_animation_without_its_end_is_refused_as_one() -> None:
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


def test_a_chunk_that_claims_more_than_there_is() -> None:
    claims = struct.pack(">I", 2**32 - 1) + b"tEXt" + b"x" * 50
    assert np.array_equal(opened(PLAIN[:-12] + claims), np.asarray(colour_ramps()))
