"""Reads the chunks of a PNG (w3.org/TR/png-3) that make up the picture, and those about its
colours. Pillow refuses a picture if a text chunk is too long, broken or truncated, and it does not
read the colour chunks as browsers do."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from wan_engine.errors import InvalidMedia
from wan_engine.media import colours
from wan_engine.media.colours import Space

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEAD = struct.Struct(">I4s")
_CHECK_BYTES = 4
_COLOUR_TYPE_AT = 25
_PICTURE = (b"IHDR", b"PLTE", b"IDAT", b"acTL", b"fcTL", b"fdAT")
_BESIDE = (b"tRNS", b"eXIf")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_XMP, _OLD_EXIF = b"XML:com.adobe.xmp\0", b"Raw profile type exif\0"
_MAX_TEXT_BYTES = 256 * 1024
_MAX_PROFILE_BYTES = 4 * 2**20
_END = _HEAD.pack(0, b"IEND") + struct.pack(">I", zlib.crc32(b"IEND"))
_IHDR = struct.Struct(">2I2B2xB")  # width, height, bit depth, colour type, interlace method
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # channels per pixel, by colour type
# First column and row, and steps from one to the next (table 12).
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
_PART_BYTES = 64 * 1024
_PERCEPTUAL_TO_ABSOLUTE = range(4)  # the rendering intents of sRGB


@dataclass(frozen=True)
class _Chunk:
    kind: bytes
    body: memoryview
    data: memoryview

    @property
    def complete(self) -> bool:
        return len(self.data) == _HEAD.size + len(self.body) + _CHECK_BYTES

    @property
    def sound(self) -> bool:
        return zlib.crc32(self.body, zlib.crc32(self.kind)) == int.from_bytes(
            self.data[-_CHECK_BYTES:]
        )


def picture_alone(data: bytes) -> bytes:
    """The same picture without unneeded chunks, and with an end chunk. If its last data are cut, it
    is returned unchanged, because the end chunk would be read as data."""
    view, parts, at = memoryview(data), [memoryview(SIGNATURE)], len(SIGNATURE)
    for chunk in _chunks(view):
        at += len(chunk.data)
        if _belongs(chunk):
            parts.append(chunk.data)
    if data[at + 4 : at + 8] in (b"IDAT", b"fdAT"):
        return b"".join([*parts, view[at:]])
    return b"".join([*parts, memoryview(_END)])


def check_complete(data: bytes) -> None:
    """Raise `InvalidMedia` if rows of a picture that Pillow has decoded are missing or damaged.
    Pillow leaves missing rows black."""
    missing = _row_bytes(data)
    try:
        for part in _inflated(_rows(data)):
            missing -= len(part)
            if missing <= 0:
                break
    except zlib.error:  # Pillow would have reported it, unless it had all rows before
        missing = 0
    if missing > 0 or any(chunk.complete and not chunk.sound for chunk in _rows(data)):
        raise InvalidMedia("image", "the image is damaged")


def has_grey_and_alpha(data: bytes) -> bool:
    return data.startswith(SIGNATURE) and data[_COLOUR_TYPE_AT : _COLOUR_TYPE_AT + 1] == b"\4"


def space_of(data: bytes) -> Space | None:
    """The colour space that a browser uses: the first of cICP, iCCP, sRGB and gAMA with cHRM that
    is present and valid."""
    notes: dict[bytes, bytes] = {}
    for chunk in _chunks(memoryview(data)):
        if chunk.kind in (b"IDAT", b"PLTE"):
            break
        if chunk.kind in (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM") and chunk.sound:
            notes.setdefault(chunk.kind, bytes(chunk.body))
    if space := _by_code_points(notes.get(b"cICP", b"")):
        return space
    if profile := _profile(notes.get(b"iCCP", b"")):
        return profile
    intent = notes.get(b"sRGB", b"")
    if len(intent) == 1 and intent[0] in _PERCEPTUAL_TO_ABSOLUTE:
        return None
    return _by_gamma(notes.get(b"gAMA", b""), notes.get(b"cHRM", b""))


def _chunks(data: memoryview) -> Iterator[_Chunk]:
    """The chunks up to the end, or up to the first truncated or invalid one."""
    at = len(SIGNATURE)
    while at + _HEAD.size + _CHECK_BYTES <= len(data):
        length, kind = _HEAD.unpack_from(data, at)
        body = at + _HEAD.size
        end = body + length + _CHECK_BYTES
        if end > len(data) or kind == b"IEND" or not kind.isalpha():
            return
        yield _Chunk(kind, data[body : body + length], data[at:end])
        at = end


def _rows(data: bytes) -> Iterator[_Chunk]:
    """The rows of the first picture. The last one may be cut."""
    view, at, begun = memoryview(data), len(SIGNATURE), False
    while at + _HEAD.size <= len(data):
        length, kind = _HEAD.unpack_from(data, at)
        body = at + _HEAD.size
        end = body + length + _CHECK_BYTES
        if kind == b"IDAT":
            begun = True
            yield _Chunk(kind, view[body : body + length], view[at:end])
        elif begun and kind in _PICTURE:
            return
        at = end


def _inflated(chunks: Iterable[_Chunk]) -> Iterator[bytes]:
    """The decompressed data, one part at a time. Raises zlib.error."""
    packer = zlib.decompressobj()
    for chunk in chunks:
        for start in range(0, len(chunk.body), _PART_BYTES):
            rest: bytes | memoryview = chunk.body[start : start + _PART_BYTES]
            while rest and not packer.eof:
                yield packer.decompress(rest, _PART_BYTES)
                rest = packer.unconsumed_tail
    yield packer.flush()


def _row_bytes(data: bytes) -> int:
    """The length of all rows, each with its filter byte."""
    width, height, depth, colour, interlaced = _IHDR.unpack_from(data, len(SIGNATURE) + _HEAD.size)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = 0
    for left, top, across, down in passes:
        columns, rows = -((left - width) // across), -((top - height) // down)
        if columns > 0:
            total += max(rows, 0) * (1 + (columns * depth * _SAMPLES[colour] + 7) // 8)
    return total


def _belongs(chunk: _Chunk) -> bool:
    if chunk.kind in _PICTURE:
        return True
    if chunk.kind in _TEXTS:
        return chunk.sound and _is_short_note(chunk.kind, bytes(chunk.body))
    return chunk.kind in _BESIDE and chunk.sound


def _is_short_note(kind: bytes, body: bytes) -> bool:
    """Whether it may contain the orientation, and stays small when it is decompressed."""
    if not body.startswith((_XMP, _OLD_EXIF)) or len(body) > _MAX_TEXT_BYTES:
        return False
    _, _, rest = body.partition(b"\0")
    if kind == b"zTXt":
        return rest[:1] == b"\0" and _stays_small(rest[1:])
    if kind == b"iTXt" and rest[:1] != b"\0":  # after method, language and translated name
        return _stays_small(rest[2:].split(b"\0", 2)[-1])
    return True


def _stays_small(packed: bytes) -> bool:
    return len(_unpacked(packed, _MAX_TEXT_BYTES)) < _MAX_TEXT_BYTES


def _unpacked(packed: bytes, most: int) -> bytes:
    """At most `most` decompressed bytes, or none if it is not zlib data."""
    try:
        return zlib.decompressobj().decompress(packed, most)
    except zlib.error:
        return b""


def _by_code_points(body: bytes) -> Space | None:
    """The colour space of H.273 numbers. Pictures use RGB at full range only."""
    if len(body) != 4 or body[2:] != b"\0\1":
        return None
    return colours.by_code_points(body[0], body[1])


def _profile(body: bytes) -> bytes | None:
    _, _, packed = body.partition(b"\0")
    profile = _unpacked(packed[1:], _MAX_PROFILE_BYTES)
    return profile if colours.is_profile(profile) else None


def _by_gamma(gamma: bytes, chromaticities: bytes) -> Space | None:
    if len(gamma) != 4:
        return None
    points = struct.unpack(">8I", chromaticities) if len(chromaticities) == 32 else None
    return colours.by_gamma(
        int.from_bytes(gamma) / 100_000,
        points and tuple(point / 100_000 for point in points),
    )
