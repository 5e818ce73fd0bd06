"""The detected subject of a picture, and the crops that later shots start from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from wan_engine.media.framing import cropped, subject
from wan_engine.plan import punch_in
from wan_engine.schema import WHOLE


@pytest.mark.parametrize("size", [(900, 300), (300, 900), (640, 640)])
@pytest.mark.parametrize("place", [(0.25, 0.3), (0.5, 0.5), (0.75, 0.7)])
def test_a_thing_on_a_plain_ground_is_the_subject(
    size: tuple[int, int], place: tuple[float, float]
) -> None:
    image = Image.new("RGB", size, "white")
    x, y, radius = place[0] * size[0], place[1] * size[1], min(size) / 8
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), "red")
    assert subject(image) == pytest.approx(place, abs=0.08)
    assert subject(image) == subject(image.copy())


@pytest.mark.parametrize(
    ("name", "must_be_seen"),
    [
        ("astronaut_360x480.png", (85, 20, 220, 175)),  # the head
        ("rocket_640x360.jpg", (308, 92, 336, 280)),  # the rocket
    ],
)
def test_the_closest_crop_of_a_photo_keeps_its_subject(
    data: Path, name: str, must_be_seen: tuple[int, int, int, int]
) -> None:
    image = Image.open(data / name).convert("RGB")
    left, top, right, bottom = punch_in("detail", subject(image))
    assert left * image.width <= must_be_seen[0] and right * image.width >= must_be_seen[2]
    assert top * image.height <= must_be_seen[1] and bottom * image.height >= must_be_seen[3]


@settings(max_examples=50, deadline=None, database=None)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    colours=st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=4),
)
def test_every_picture_has_a_subject_inside_its_borders(
    size: tuple[int, int], colours: list[tuple[int, int, int]]
) -> None:
    image = Image.new("RGB", size, colours[0])
    for number, colour in enumerate(colours[1:]):
        image.paste(colour, (number * 10, 0, number * 10 + 5, size[1]))
    x, y = subject(image)
    assert 0 <= x <= 1 and 0 <= y <= 1


def test_a_crop_has_exactly_its_pixels_of_the_picture() -> None:
    pixels = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
    image = Image.fromarray(pixels)
    part = cropped(image, (0.25, 0.5, 0.75, 1.0))
    assert np.array_equal(np.asarray(part), pixels[20:40, 15:45])
    assert cropped(image, WHOLE) is image
