"""Which JPEG files are complete. A picture is compared with that of the complete file."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.media.odd_pictures import encoded
from wan_engine.errors import InvalidMedia
from wan_engine.media.images import ImageLimits, open_image
from wan_engine.media.jpeg import read_structure

DAMAGED = "Invalid image URL: the image is damaged"
END = b"\xff\xd9"
KINDS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "every pixel has its colour": {"subsampling": 0, "quality": 95},
    "with restarts": {"restart_marker_rows": 1},
    "progressive with restarts": {"progressive": True, "restart_marker_blocks": 3},
    "the best quality": {"quality": 100, "progressive": True},
    "own codes": {"optimize": True},
}


@cache
def picture(name: str) -> Image.Image:
    """303x241, so that the last blocks are not full."""
    rows, columns = np.mgrid[:241, :303]
    smooth = [127 + 120 * np.sin(columns / 17 + rows / 31), 127 + 99 * np.cos(rows / 23)]
    waves = np.stack([*smooth, 127 + 100 * np.sin(columns / 9)], 2).astype(np.uint8)
    noise = np.random.default_rng(1).integers(0, 256, (241, 303, 3), np.uint8)
    pictures = {
        "waves": Image.fromarray(waves),
        "noise": Image.fromarray(noise),
        "flat": Image.new("RGB", (303, 241), (120, 130, 140)),
        "grey": Image.fromarray(waves).convert("L"),
        "CMYK": Image.fromarray(noise).convert("CMYK"),
    }
    return pictures[name]


@cache
def jpeg(name: str, kind: str) -> bytes:
    data = encoded(picture(name), "JPEG", **KINDS[kind])
    assert data.endswith(END)
    return data


def opened(data: bytes) -> np.ndarray:
    return np.asarray(open_image(data, ImageLimits()))


def refused(data: bytes) -> bool:
    try:
        opened(data)
    except InvalidMedia as error:
        assert str(error) == DAMAGED
        return True
    return False


@pytest.mark.parametrize("name", ["waves", "noise", "flat", "grey", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_without_its_end_marker_is_accepted(name: str, kind: str) -> None:
    data = jpeg(name, kind)
    whole = opened(data)
    tails = [b"", b"\xff", b"\xff\0\0", b"\xff\xff"]
    if name != "flat":  # its own last bytes are zeros
        tails.append(bytes(3000))
    for tail in tails:
        assert np.array_equal(opened(data[:-2] + tail), whole), tail


@pytest.mark.parametrize("name", ["waves", "noise", "grey", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_within_the_picture_is_refused(name: str, kind: str) -> None:
    data = jpeg(name, kind)[:-2]
    lengths = [len(data) - lost for lost in (2, 3, 5, 9, 60)]
    lengths += [len(data) * seventh // 7 for seventh in range(1, 7)]
    taken = {}
    for length in lengths:
        for tail in (b"", bytes(2000), END):
            if not refused(data[:length] + tail):
                levels = np.abs(opened(data[:length] + tail).astype(int) - opened(data))
                taken[length - len(data), tail[:2]] = levels.max()
    assert {cut: levels for cut, levels in taken.items() if levels > 2} == {}


def test_one_lost_byte_is_refused_or_not_visible() -> None:
    """Padding can fill all but a bit or two of a byte, and a decoder may assume those."""
    for name in ("waves", "noise", "grey"):
        for kind in KINDS:
            data = jpeg(name, kind)
            for ending in (b"", END):
                cut = data[:-3] + ending
                if not refused(cut):
                    levels = np.abs(opened(cut).astype(int) - opened(data))
                    assert levels.max() <= 1, (name, kind)


@pytest.mark.parametrize("name", ["waves", "noise", "grey", "flat"])
def test_a_progressive_jpeg_without_its_last_scans_is_refused(name: str) -> None:
    data = jpeg(name, "progressive")
    starts = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    tables = [data.rindex(b"\xff\xc4", 0, at) for at in starts]
    for start in (*starts[1:], *tables[1:]):
        assert refused(data[:start])
        assert refused(data[:start] + END)
        assert refused(data[: start + 2])
        assert refused(data[: start + 7])


def test_every_component_needs_its_scan() -> None:
    """A sequential picture may have a scan for each of them."""
    grey = encoded(picture("grey"), "JPEG")
    frame, segment = grey.index(b"\xff\xc0"), 2 + 11
    two = (
        b"\xff\xc0\0\x0e" + grey[frame + 4 : frame + 9] + b"\2" + grey[frame + 10 : frame + segment]
    )
    parts = read_structure(grey[:frame] + two + b"\2\x11\0" + grey[frame + segment : -2])
    assert (len(parts.scans), parts.complete, parts.has_end) == (1, False, False)
    assert read_structure(grey[:-2]).complete


def test_films_after_the_picture_are_ignored() -> None:
    whole = jpeg("waves", "baseline")
    assert np.array_equal(opened(whole + b"\0\0\0\x18ftypmp42" + bytes(500)), opened(whole))
    assert np.array_equal(opened(whole + whole), opened(whole))


def test_flat_blocks_at_the_end_are_no_sign_of_a_cut() -> None:
    grey = Image.new("RGB", (303, 241), (128, 128, 128))
    for options in KINDS.values():
        data = encoded(grey, "JPEG", **options)
        assert not refused(data) and not refused(data[:-2])


@pytest.mark.parametrize("numbers", [b"\0\0\0", b"\0\x3f\1", b"\1\x3f\0"])
def test_rules_of_progressive_pictures_apply_to_them_alone(numbers: bytes) -> None:
    data = jpeg("waves", "baseline")
    at = data.index(b"\xff\xda")
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
    odd = data[: end - 3] + numbers + data[end:]
    assert np.array_equal(opened(odd), opened(data))


# --- damage inside the file ----------------------------------------------------------------------

PAGE = b"<html><head><title>503 Service Unavailable</title></head>" * 2000
DAMAGE: dict[str, Callable[[bytes, int], bytes]] = {
    "zeros to the end": lambda data, at: data[:at] + bytes(len(data) - at - 2) + END,
    "zeros": lambda data, at: data[:at] + bytes(len(data) // 10) + data[at + len(data) // 10 :],
    "4 KB of zeros": lambda data, at: data[:at] + bytes(4096) + data[at + 4096 :],
    "a page": lambda data, at: data[:at] + PAGE[: len(data) // 9] + data[at + len(data) // 9 :],
    "a page at the end": lambda data, at: data[:at] + PAGE[:3000] + END,
    "nothing": lambda data, at: data[:at] + data[at + len(data) // 10 :],
}
DAMAGED_KINDS = KINDS | {
    "own codes, best": {"optimize": True, "quality": 95},
    "own codes, own colours": {"optimize": True, "subsampling": 0},
}


@pytest.mark.parametrize("kind", DAMAGED_KINDS)
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_within_the_picture_is_refused_or_hardly_visible(
    data: Path, name: str, kind: str
) -> None:
    """Damage in a scan that refines the picture is hardly visible."""
    for file in ("rocket_640x360.jpg", "astronaut_360x480.png"):
        with Image.open(data / file) as image:
            whole = encoded(image, "JPEG", **DAMAGED_KINDS[kind])
        for tenth in (3, 5, 8):
            damaged = DAMAGE[name](whole, len(whole) * tenth // 10)
            if not refused(damaged):
                levels = np.abs(opened(damaged).astype(int) - opened(whole)).max(axis=2)
                assert (levels > 30).mean() < 0.03, (file, tenth)


def test_restart_markers_are_counted_and_in_order() -> None:
    data = jpeg("waves", "with restarts")
    first = data.index(b"\xff\xd0")
    second = data.index(b"\xff\xd1")
    assert refused(data[:first] + data[second:])
    assert refused(data[:first] + b"\xff\xd3" + data[first + 2 :])
    last = re.findall(rb"\xff([\xd0-\xd7])", data)[-1][0]
    more = bytes([0xFF, 0xD0 + (last + 1) % 8])
    assert np.array_equal(opened(data[:-2] + more + END), opened(data))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "more", [b"", b"\xff" * 20, bytes(3000), b"\1\2custom data" * 200], ids=len
)
def test_bytes_between_the_picture_and_its_end_marker_are_no_damage(kind: str, more: bytes) -> None:
    """Cameras align their files like this, or leave notes there."""
    for name in ("waves", "grey"):
        data = jpeg(name, kind)
        assert np.array_equal(opened(data[:-2] + more + END), opened(data))


def test_space_between_the_scans_may_be_filled() -> None:
    data = jpeg("waves", "progressive")
    filled = data.replace(b"\xff\xda", b"\xff" * 5 + b"\xda").replace(b"\xff\xc4", b"\xff\xff\xc4")
    assert np.array_equal(opened(filled), opened(data))


def test_a_comment_that_contains_html_is_allowed() -> None:
    data = jpeg("waves", "baseline")
    note = b"<?xml version='1.0'?><html></html>"
    comment = b"\xff\xfe" + (len(note) + 2).to_bytes(2) + note
    assert np.array_equal(opened(data[:2] + comment + data[2:]), opened(data))


@pytest.mark.parametrize("colour", [(255, 255, 255), (128, 128, 128), (12, 200, 90)])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_flat_pictures_are_made_of_zeros(
    colour: tuple[int, int, int], progressive: bool, subsampling: int
) -> None:
    options = {"optimize": True, "progressive": progressive, "subsampling": subsampling}
    flat = Image.new("RGB", (1600, 1200), colour)
    flat.paste(picture("waves"), (300, 100))
    data = encoded(flat, "JPEG", **options)
    assert bytes(256) in data
    assert not refused(data)
    assert not refused(data[:-2])
