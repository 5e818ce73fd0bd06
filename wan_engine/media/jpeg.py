"""Checks whether a JPEG is complete. libjpeg silently fills missing parts with grey. An end marker
proves nothing, because a program that truncated the file may have written one.

The bits after the end of a scan do not belong to the picture. So it is decoded once more with other
bits there. If that changes a pixel, bits of the picture itself are missing.

Damage in the middle may make a scan end too late. So restart markers are counted, and the picture
must not depend on an HTML page of an error or on long runs of zeros. Flat pictures consist of
zeros, but need all of them.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from PIL import Image

from wan_engine.errors import InvalidMedia

MAX_SCANS = 50  # encoders write ten; each may cost 60 ms at 8000x8000, twice, and needs 95 bytes
# A marker with a length, or the end: no stuffed zero, restart (d0 to d7) or second start (d8).
_MARKER = re.compile(rb"\xff+[\x02-\xcf\xd9-\xfe]")
_END = b"\xff\xd9"
_SCAN, _INTERVAL, _HUFFMAN, _EXTENSION, _ARITHMETIC = 0xDA, 0xDD, 0xC4, 0xC8, 0xCC
_FRAMES = frozenset(range(0xC0, 0xD0)) - {_HUFFMAN, _EXTENSION, _ARITHMETIC}
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_COEFFICIENTS = 64
_PADDING_BYTES = 8
_ROWS = 256  # compared at a time
_RESTARTS = range(0xD0, 0xD8)
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_ZEROS = re.compile(rb"\0{256}")  # an eighth of the amount that a disk loses at once
_PAGE = re.compile(rb"<(?:!doctype|html|\?xml)", re.IGNORECASE)
_OWN_ZEROS = 8  # of a run may still be the picture's
_TAIL_BYTES = 8
_FIRST_BYTES = (0xB6, 0x2D, 0xE9, 0x53)  # other bits: first ones, then zeros


@dataclass
class Scan:
    """One pass over the picture. `data[start:end]` has its bits."""

    start: int
    end: int
    restarts: int | None
    """The number of restart markers that it must contain, if known."""
    refines: bool
    """Whether it adds a bit to coefficients, which may be invisible."""


@dataclass
class Structure:
    """The structure of a JPEG: the passes over the picture, and the end of the last one."""

    scans: list[Scan] = field(default_factory=list)
    end: int = 0
    """The place of the end marker, or where it belongs."""
    has_end: bool = False
    _progressive: bool = False
    _interval: int = 0
    _size: tuple[int, int] = (0, 0)
    _sampling: dict[int, tuple[int, int]] = field(default_factory=dict)
    _missing: dict[int, list[bool]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all bits of all coefficients of all components have had their scan."""
        return bool(self._missing) and not any(map(any, self._missing.values()))

    def segment(self, marker: int, at: int, segment: bytes) -> None:
        """Read one segment; `at` is where its length is."""
        if self.scans and self.scans[-1].end == 0:
            self.scans[-1].end = at - len(_END)  # and 0xff bytes that fill the space
        if marker in _FRAMES:
            self._frame(marker, segment)
        elif marker == _INTERVAL:
            self._interval = int.from_bytes(segment[2:4])
        elif marker == _SCAN:
            self._scan(at, segment)

    def finish(self, end: int, *, has_end: bool) -> None:
        """`end` is before a 0xff, which may be half of an end marker, or fill space."""
        self.end, self.has_end = end, has_end
        if self.scans and not 0 < self.scans[-1].end < end:
            self.scans[-1].end = end

    def _frame(self, marker: int, segment: bytes) -> None:
        self._progressive = marker in _PROGRESSIVE
        self._size = int.from_bytes(segment[5:7]), int.from_bytes(segment[3:5])
        for at in range(8, 8 + 3 * segment[7], 3):
            component, sampling = segment[at], segment[at + 1]
            self._sampling[component] = sampling >> 4, sampling & 0x0F
            self._missing[component] = [True] * _COEFFICIENTS

    def _scan(self, at: int, segment: bytes) -> None:
        """ITU T.81, B.2.3: components, then the first and last coefficient, the bits already sent,
        and the bits still to come. Decoders read the last four in progressive pictures only."""
        count = segment[2]
        components = segment[3 : 3 + 2 * count : 2]
        first, last, bits = segment[3 + 2 * count : 6 + 2 * count]
        if not self._progressive:
            first, last, bits = 0, _COEFFICIENTS - 1, 0
        for component in components:
            coefficients = range(first, min(last, _COEFFICIENTS - 1) + 1)
            for coefficient in coefficients if bits & 0x0F == 0 else ():
                self._missing[component][coefficient] = False
        restarts = self._restarts(components)
        self.scans.append(Scan(at + len(segment), 0, restarts, refines=bits >> 4 > 0))

    def _restarts(self, components: bytes) -> int | None:
        """The restart markers between intervals of so many units (A.2)."""
        width, height = self._size
        if not (self._interval and width and height):
            return None
        across, down = (max(sides) for sides in zip(*self._sampling.values(), strict=True))
        if len(components) == 1:
            own_across, own_down = self._sampling[components[0]]
            columns = ceil(ceil(width * own_across / across) / 8)
            rows = ceil(ceil(height * own_down / down) / 8)
        else:
            columns, rows = ceil(width / (8 * across)), ceil(height / (8 * down))
        return int((columns * rows - 1) // self._interval)


def read_structure(data: bytes) -> Structure:
    """Read up to the end of the picture; other pictures or films may follow it. Raises IndexError,
    KeyError or ValueError if a segment is cut."""
    found = Structure()
    for marker, at in _segments(data):
        found.segment(marker, at, data[at : at + int.from_bytes(data[at : at + 2])])
        if marker == _END[1]:
            found.finish(len(data[: at - len(_END)].rstrip(b"\xff")), has_end=True)
            return found
        if len(found.scans) > MAX_SCANS:
            return found
    found.finish(len(data.rstrip(b"\xff")), has_end=False)
    return found


def check_complete(image: Image.Image, data: bytes, found: Structure) -> None:
    """Raise `InvalidMedia` if bits of `image`, the decoded `data`, are missing or damaged."""
    complete = found.complete and all(_has_its_restarts(data, scan) for scan in found.scans)
    if complete and found.has_end:  # a file with an end marker is rarely truncated, so check less
        complete = _needs_no_more(image, data, found, _FIRST_BYTES[:2])
    elif complete:
        complete = _needs_no_more(image, data, _without_padding(image, data, found))
    if not complete or _is_made_of_damage(image, data, found):
        raise InvalidMedia("image", "the image is damaged")


def _has_its_restarts(data: bytes, scan: Scan) -> bool:
    """Whether the restart markers are there in order. Some encoders write one more after the
    last."""
    if scan.restarts is None:
        return True
    found = [marker[1] % 8 for marker in _RESTART.findall(data, scan.start, scan.end)]
    in_order = all(number == place % 8 for place, number in enumerate(found))
    return in_order and len(found) - scan.restarts in (0, 1)


def _is_made_of_damage(image: Image.Image, data: bytes, found: Structure) -> bool:
    """Whether the picture depends on an HTML page, or on many zeros but not on all the bytes after
    them."""
    for scan, start in _first_mark(_PAGE, data, found.scans):
        if _needs(image, data, found, scan, start):
            return True
    telling = [scan for scan in found.scans if not scan.refines]
    for scan, start in _first_mark(_ZEROS, data, telling):
        tail = max(scan.start, scan.end - _TAIL_BYTES)
        if _needs(image, data, found, scan, start + _OWN_ZEROS):
            return not _needs(image, data, found, scan, tail)
    return False


def _first_mark(
    pattern: re.Pattern[bytes], data: bytes, scans: Sequence[Scan]
) -> Iterator[tuple[Scan, int]]:
    """The first scan that contains the mark, and its place. Other scans are not checked, because
    each check takes time."""
    for scan in scans:
        if mark := pattern.search(data, scan.start, scan.end):
            yield scan, mark.start()
            return


def _needs(image: Image.Image, data: bytes, found: Structure, scan: Scan, start: int) -> bool:
    """Whether the picture looks different without the bits of `scan` from `start` on."""
    rest = data[scan.end : found.end] + _end(data, found)
    for first in _FIRST_BYTES[:2]:
        fill = _fill(first, _next_restart(data, scan.start, start))
        if not _shows(image, data[:start].rstrip(b"\xff") + fill + rest):
            return True
    return False


def _without_padding(image: Image.Image, data: bytes, found: Structure) -> Structure:
    """Remove the zeros of a file that was created at full length and not filled. Flat pictures also
    end with zeros, but need the last of them."""
    bare = len(data[: found.end].rstrip(b"\0"))
    shorter = replace(found, end=found.end - _PADDING_BYTES)
    if shorter.end <= bare or not _needs_no_more(image, data, shorter):
        return found
    return replace(found, end=bare + data[:bare].endswith(b"\xff"))


def _needs_no_more(
    image: Image.Image, data: bytes, found: Structure, first_bytes: Sequence[int] = _FIRST_BYTES
) -> bool:
    """Whether the picture stays the same with other bits after the end of each scan."""
    return all(_shows(image, _filled(data, found, first)) for first in first_bytes)


def _filled(data: bytes, found: Structure, first: int) -> bytes:
    parts, at = [], 0
    for scan in found.scans:
        end = found.end if scan is found.scans[-1] else scan.end
        parts += [data[at:end].rstrip(b"\xff"), _fill(first, _next_restart(data, scan.start, end))]
        at = end
    return b"".join([*parts, _end(data, found)])


def _shows(image: Image.Image, data: bytes) -> bool:
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as other:
        other.load()
        return _same(image, other)


def _fill(first: int, restart: int) -> bytes:
    """Noise, with the restart markers that a picture may wait for."""
    noise = random.Random(first)
    parts = [bytes([first])]
    for number in range(restart, restart + 64):
        parts += [noise.randbytes(96).replace(b"\xff", b""), bytes([0xFF, _RESTARTS[number % 8]])]
    return b"".join(parts)


def _next_restart(data: bytes, start: int, end: int) -> int:
    places = [data.rfind(bytes([0xFF, restart]), start, end) for restart in _RESTARTS]
    return (places.index(max(places)) + 1) % 8 if max(places) >= 0 else 0


def ended(data: bytes, found: Structure) -> bytes:
    """`data` with an end marker."""
    return data[: found.end] + _end(data, found)


def _end(data: bytes, found: Structure) -> bytes:
    return data[found.end :] if found.has_end else _END


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Each marker and the start of its segment, found like Pillow does: past fill bytes and any
    bytes between segments."""
    at = 2
    while found := _MARKER.search(data, at):
        yield data[found.end() - 1], found.end()
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])


def _same(one: Image.Image, other: Image.Image) -> bool:
    if (one.size, one.mode) != (other.size, other.mode):
        return False
    boxes = [(0, top, one.width, top + _ROWS) for top in range(0, one.height, _ROWS)]
    return all(one.crop(box).tobytes() == other.crop(box).tobytes() for box in boxes)
