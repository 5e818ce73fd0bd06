"""Whether a JPEG is whole. libjpeg fills what is missing with grey and says nothing; an end marker
proves nothing either, as whoever cut the file may have written one.

The bits that come after the picture's last one belong to nobody. So the picture is decoded once
more with other bits there: where that changes a pixel, bits of the picture itself are missing.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from wan_engine.errors import InvalidMedia

MAX_SCANS = 50  # encoders write ten; each may cost 60 ms at 8000x8000, twice, and needs 95 bytes
# A marker with a length, or the end: no stuffed zero, restart (d0 to d7) or second start (d8).
_MARKER = re.compile(rb"\xff+[\x02-\xcf\xd9-\xfe]")
_END = b"\xff\xd9"
_SCAN, _HUFFMAN, _EXTENSION, _ARITHMETIC = 0xDA, 0xC4, 0xC8, 0xCC
_FRAMES = frozenset(range(0xC0, 0xD0)) - {_HUFFMAN, _EXTENSION, _ARITHMETIC}
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_COEFFICIENTS = 64
_PADDING_BYTES = 8
_ROWS = 256  # compared at a time
_RESTARTS = range(0xD0, 0xD8)
_FIRST_BYTES = (0xB6, 0x2D, 0xE9, 0x53)  # of other bits: ones first, and zeros


@dataclass
class Outline:
    """What the segments of a JPEG say: passes over the picture, and where the last one ends."""

    scans: int = 0
    end: int = 0
    """Where the end marker is, or belongs."""
    has_end: bool = False
    last_scan: int = 0
    _progressive: bool = False
    _missing: dict[int, list[bool]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all bits of all coefficients of all components have had their scan."""
        return bool(self._missing) and not any(map(any, self._missing.values()))

    def frame(self, marker: int, segment: bytes) -> None:
        self._progressive = marker in _PROGRESSIVE
        for component in segment[8 : 8 + 3 * segment[7] : 3]:
            self._missing[component] = [True] * _COEFFICIENTS

    def scan(self, segment: bytes) -> None:
        """ITU T.81, B.2.3: components, then first and last coefficient and the bits still kept
        back, which decoders read of progressive pictures alone."""
        self.scans += 1
        count = segment[2]
        first, last, bits = segment[3 + 2 * count : 6 + 2 * count]
        if not self._progressive:
            first, last, bits = 0, _COEFFICIENTS - 1, 0
        for component in segment[3 : 3 + 2 * count : 2]:
            coefficients = range(first, min(last, _COEFFICIENTS - 1) + 1)
            for coefficient in coefficients if bits & 0x0F == 0 else ():
                self._missing[component][coefficient] = False


def outline(data: bytes) -> Outline:
    """Up to the end of the picture; other pictures or films may follow. Raises IndexError, KeyError
    or ValueError where a segment is cut."""
    found = Outline()
    for marker, at in _segments(data):
        segment = data[at : at + int.from_bytes(data[at : at + 2])]
        if marker == _END[1]:
            found.end, found.has_end = at - len(_END), True
            return found
        if marker in _FRAMES:
            found.frame(marker, segment)
        elif marker == _SCAN:
            found.scan(segment)
            found.last_scan = at
            if found.scans > MAX_SCANS:
                return found
    found.end = len(data.rstrip(b"\xff"))  # half of an end marker may be there
    return found


def check_whole(image: Image.Image, data: bytes, found: Outline) -> None:
    """Raises `InvalidMedia` when bits of `image`, the decoded `data`, are missing."""
    whole = found.complete
    if whole and found.has_end:  # who wrote one has rarely cut the file: less work
        whole = _needs_no_more(image, data, found, _FIRST_BYTES[:2])
    elif whole:
        whole = _needs_no_more(image, data, _without_padding(image, data, found))
    if not whole:
        raise InvalidMedia("image", "the image is damaged")


def _without_padding(image: Image.Image, data: bytes, found: Outline) -> Outline:
    """Without the zeros of a file that was made as long as it should be before it was filled. Flat
    pictures end in zeros of their own, but need the last of them."""
    bare = len(data[: found.end].rstrip(b"\0"))
    shorter = replace(found, end=found.end - _PADDING_BYTES)
    if shorter.end <= bare or not _needs_no_more(image, data, shorter):
        return found
    return replace(found, end=bare + data[:bare].endswith(b"\xff"))


def _needs_no_more(
    image: Image.Image, data: bytes, found: Outline, first_bytes: Sequence[int] = _FIRST_BYTES
) -> bool:
    """Whether it looks the same whatever comes behind the end."""
    for first in first_bytes:
        fill = _fill(first, _next_restart(data, found))
        with Image.open(io.BytesIO(ended(data, found, fill)), formats=["JPEG"]) as other:
            other.load()
            if not _same(image, other):
                return False
    return True


def _fill(first: int, restart: int) -> bytes:
    """Noise, and the restart markers that a picture may wait for."""
    noise = random.Random(first)
    parts = [bytes([first])]
    for number in range(restart, restart + 64):
        parts += [noise.randbytes(96).replace(b"\xff", b""), bytes([0xFF, _RESTARTS[number % 8]])]
    return b"".join(parts)


def _next_restart(data: bytes, found: Outline) -> int:
    places = [
        data.rfind(bytes([0xFF, restart]), found.last_scan, found.end) for restart in _RESTARTS
    ]
    return (places.index(max(places)) + 1) % 8 if max(places) >= 0 else 0


def ended(data: bytes, found: Outline, fill: bytes = b"") -> bytes:
    """`data` with `fill` behind the picture's last bit, and an end marker."""
    rest = data[found.end :] if found.has_end else _END
    return data[: found.end] + fill + rest


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Each marker and where its segment begins, found as Pillow does: past fill bytes and whatever
    lies between the segments."""
    at = 2
    while found := _MARKER.search(data, at):
        yield data[found.end() - 1], found.end()
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])


def _same(one: Image.Image, other: Image.Image) -> bool:
    if (one.size, one.mode) != (other.size, other.mode):
        return False
    boxes = [(0, top, one.width, top + _ROWS) for top in range(0, one.height, _ROWS)]
    return all(one.crop(box).tobytes() == other.crop(box).tobytes() for box in boxes)
