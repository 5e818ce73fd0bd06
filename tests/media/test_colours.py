"""How `open_image` applies profiles and the colour chunks of PNG files. Expected colours are what
Chromium 156 shows; `test_images_in_chromium.py` compares with the installed one."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from tests.media.odd_pictures import (
    P3,
    chromaticities,
    code_points,
    colour_ramps,
    encoded,
    gamma,
    grey_profile,
    grey_ramp,
    pictures,
    rgb_profile,
    with_chunks,
)
from wan_engine.media import colours
from wan_engine.media.images import ImageLimits, open_image

SHOWN = {
    "grey JPEG, grey profile": (119, 119, 119),
    "grey PNG, grey profile": (119, 119, 119),
    "grey PNG, linear profile": (168, 168, 168),
    "grey PNG, RGB profile": (119, 119, 119),
    "4-bit grey, grey profile": (86, 86, 86),
    "16-bit grey, grey profile": (119, 119, 119),
    "16-bit grey, gamma": (168, 168, 168),
    "16-bit LA, grey profile": (172, 172, 172),
    "16-bit RGB, profile": (81, 158, 157),
    "LA, grey profile": (187, 187, 187),
    "LA, RGB profile": (177, 177, 177),
    "RGBA, profile": (173, 192, 154),
    "RGBA, grey profile": (177, 191, 159),
    "RGBA, cICP": (173, 192, 154),
    "grey key, grey profile": (119, 119, 119),
    "RGB, grey profile": (100, 128, 64),
    "RGB, CMYK profile": (100, 128, 64),
    "WEBP, profile": (92, 129, 54),
    "palette, cICP": (95, 129, 54),
    "palette, gamma": (170, 188, 137),
    "palette, grey profile": (102, 128, 64),
    "CMYK": (148, 168, 225),
    "CMYK, grey profile": (148, 168, 225),
    "CMYK, profile": (190, 198, 208),
    "BMP, profile": (92, 129, 54),
    "cICP (1, 13)": (100, 128, 64),
    "cICP (12, 13)": (92, 129, 54),
    "cICP (9, 16)": (0, 138, 0),
    "cICP (9, 18)": (63, 101, 39),
    "cICP (1, 16)": (76, 132, 30),
    "cICP (1, 8)": (168, 188, 137),
    "cICP (1, 1)": (91, 121, 54),
    "cICP (9, 14)": (70, 124, 38),
    "cICP (12, 4)": (92, 130, 51),
    "cICP (11, 17)": (81, 119, 35),
    "cICP (1, 5)": (76, 106, 40),
    "cICP (1, 7)": (115, 141, 81),
    "cICP (4, 4)": (88, 126, 55),
    "cICP (5, 6)": (90, 121, 55),
    "cICP (7, 7)": (116, 140, 81),
    "cICP (8, 1)": (79, 123, 44),
    "cICP (10, 8)": (144, 204, 125),
    "cICP (22, 13)": (99, 126, 64),
    "cICP (2, 2)": (100, 128, 64),
    "cICP (12, 2)": (100, 128, 64),
    "gamma 0": (100, 128, 64),
    "gamma 1": (0, 0, 0),
    "gamma 43 000": (95, 124, 56),
    "gamma 45 455": (100, 128, 64),
    "gamma 47 000": (100, 128, 64),
    "gamma 48 000": (105, 134, 67),
    "gamma 100 000": (168, 188, 137),
    "largest gamma": (255, 255, 255),
    "gamma and primaries": (92, 130, 51),
    "gamma and our primaries": (100, 129, 62),
    "primaries alone": (100, 128, 64),
    "primaries of nothing": (100, 128, 64),
    "primaries all zero": (100, 128, 64),
    "largest primaries": (100, 128, 64),
    "sRGB before gamma": (100, 128, 64),
    "gamma before sRGB": (100, 128, 64),
    "sRGB of no intent": (168, 188, 137),
    "profile and gamma": (92, 129, 54),
    "garbage and gamma": (168, 188, 137),
    "grey profile and gamma": (100, 128, 64),
    "two gammas": (168, 188, 137),
    "cICP and profile": (92, 129, 54),
    "cICP of a film and profile": (92, 129, 54),
    "unknown cICP and profile": (92, 129, 54),
    "short cICP and gamma": (168, 188, 137),
    "sRGB and cICP": (92, 129, 54),
    "gamma behind the data": (100, 128, 64),
}
"""The pixel at (100, 90)."""


def opened(data: bytes) -> np.ndarray:
    return np.asarray(open_image(data, ImageLimits())).astype(int)


def test_colours_are_those_that_chromium_showed() -> None:
    found = {name: opened(data)[90, 100] for name, data in pictures().items()}
    levels = {name: int(np.abs(pixel - SHOWN[name]).max()) for name, pixel in found.items()}
    assert {name: levels[name] for name in SHOWN if levels[name] > 3} == {}


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_grey_profile_applies_to_a_grey_picture(kind: str) -> None:
    options = {"quality": 100} if kind == "JPEG" else {}
    seen = opened(encoded(grey_ramp(), kind, icc_profile=grey_profile(1.8), **options))
    assert [seen[0, level, 0] for level in (64, 128)] == pytest.approx([81, 146], abs=1)
    assert np.ptp(seen, axis=2).max() == 0  # it stays grey


def test_the_shadows_of_a_linear_grey_are_exact() -> None:
    seen = opened(encoded(grey_ramp(), "PNG", icc_profile=grey_profile(1.0)))[0, :, 0]
    light = np.arange(256) / 255
    exact = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(seen - exact * 255).max() <= 1


def test_colours_are_converted_to_srgb_before_transparency() -> None:
    """Half of a linear grey on white is half of the encoded grey, and not of its light."""
    image = grey_ramp().convert("LA")
    image.putalpha(128)
    seen = opened(encoded(image, "PNG", icc_profile=grey_profile(1.0)))[0, 128]
    assert seen == pytest.approx([255 - (255 - 188) * 128 / 255] * 3, abs=1)


def test_a_profile_with_a_gamma_and_the_same_gamma_as_a_number_look_alike() -> None:
    by_profile = opened(encoded(colour_ramps(), "PNG", icc_profile=rgb_profile(1.0)))
    by_number = opened(with_chunks(encoded(colour_ramps(), "PNG"), gamma(100_000)))
    assert np.abs(by_profile - by_number).max() <= 1


@pytest.mark.parametrize("transfer", [16, 18], ids=["PQ", "HLG"])
def test_highlights_are_compressed_in_order_and_keep_their_hue(transfer: int) -> None:
    seen = opened(with_chunks(encoded(colour_ramps(), "PNG"), code_points(9, transfer, 0, 1)))
    grey = seen[0]
    assert np.all(np.diff(grey[:, 0]) >= 0) and np.ptp(grey, axis=1).max() == 0
    assert (grey.min(), grey.max()) == (0, 255)


NONSENSE = {
    "zero gamma": gamma(0),
    "white without light": chromaticities(0.3, 0, *P3[2:]),
    "one point for all": chromaticities(*[0.3] * 8),
    "a line": chromaticities(0.31, 0.33, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3),
    "the largest numbers": (b"cHRM", b"\xff" * 32),
    "all zero": (b"cHRM", bytes(32)),
    "cut primaries": (b"cHRM", bytes(10)),
    "cut gamma": (b"gAMA", b"\0\1"),
    "no code points": (b"cICP", b""),
    "code points of luma": code_points(12, 13, 1, 1),
    "reserved code points": code_points(255, 255, 0, 1),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_impossible_numbers_leave_the_picture_unchanged(name: str) -> None:
    data = with_chunks(encoded(colour_ramps(), "PNG"), NONSENSE[name], gamma(45_455))
    assert np.array_equal(opened(data), np.asarray(colour_ramps()))


@pytest.mark.filterwarnings("error")
def test_no_numbers_of_a_stranger_cause_an_error_or_a_warning() -> None:
    ramps, random = encoded(colour_ramps().crop((0, 0, 240, 240)), "PNG"), np.random.default_rng(5)
    numbers = [0, 1, 2, 5, 1000, 31_270, 100_000, 200_000, 2**31 - 1, 2**31, 2**32 - 1]
    for _ in range(60):
        points = struct.pack(">8I", *(int(random.choice(numbers)) for _ in range(8)))
        chunks = [(b"cHRM", points), gamma(int(random.choice(numbers)))]
        assert opened(with_chunks(ramps, *chunks)).shape == (240, 240, 3)


def test_every_code_point_gives_light_or_nothing() -> None:
    for primaries in range(256):
        for transfer in range(256):
            space = colours.by_code_points(primaries, transfer)
            if space is not None:
                assert np.all(np.isfinite(space.light)) and np.all(np.diff(space.light) >= 0)
                assert space.light[0] == 0


def test_converting_a_large_picture_takes_no_more_memory_than_the_picture() -> None:
    space = colours.by_code_points(9, 16)
    image = Image.new("RGB", (3000, 3000), (200, 100, 50))
    tracemalloc.start()
    try:
        colours.to_srgb(image, space)
        assert tracemalloc.get_traced_memory()[1] < 4 * 3000 * 3000 * 3
    finally:
        tracemalloc.stop()
