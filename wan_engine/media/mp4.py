"""Reads the boxes of an MP4 or MOV (ISO/IEC 14496-12, QuickTime File Format) before a decoder
does: the tracks in its header, whether they are encrypted or in another file, and whether it is
complete."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_BEGINS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_NEEDED = (b"moov", b"mdat", b"moof")
_LOCKED = (b"encv", b"enca", b"drmi", b"drms")  # ISO/IEC 14496-12, 8.12, and Apple's FairPlay
_SMALL_HEAD_BYTES, _LARGE_HEAD_BYTES = 8, 16
_MOST_BOXES = 20_000  # in one box; 30 seconds in fragments of one frame each have fewer
_HANDLER_AT = 8  # in the body of hdlr, after version, flags and an unused field
_SIDES_AT = (24, 26)
_LIST_HEAD_BYTES = 8  # version, flags and number of entries
_IN_THIS_FILE = 1  # the flag of a data reference (8.7.2)


@dataclass(frozen=True)
class Track:
    """A track. `kind` is its handler, b"vide" or b"soun" for picture and sound. `locked`: it is
    encrypted. `elsewhere`: its data are in another file. `sides` are the claimed width and height
    of its pictures; (0, 0) for a sound."""

    kind: bytes
    sides: tuple[int, int]
    locked: bool
    elsewhere: bool


@dataclass(frozen=True)
class _Box:
    kind: bytes
    body: memoryview
    complete: bool


def is_mp4(data: bytes) -> bool:
    """Whether the bytes begin like an MP4 or MOV."""
    return data[4:8] in _BEGINS


def is_complete(data: bytes) -> bool:
    """Whether every box with pictures or sound ends within the file."""
    return all(box.complete or box.kind not in _NEEDED for box in _boxes(memoryview(data)))


def tracks(data: bytes) -> list[Track]:
    """The tracks in its header; none if it has no readable header."""
    return [_track(box.body) for box in _inside(memoryview(data), b"moov", b"trak")]


def _track(body: memoryview) -> Track:
    kind = b""
    for box in _inside(body, b"mdia", b"hdlr"):
        kind = bytes(box.body[_HANDLER_AT : _HANDLER_AT + 4])
    codecs = list(_entries(body, b"mdia", b"minf", b"stbl", b"stsd"))
    sources = list(_entries(body, b"mdia", b"minf", b"dinf", b"dref"))
    seen = [_sides(entry.body) for entry in codecs] if kind == b"vide" else []
    return Track(
        kind=kind,
        sides=max(seen, default=(0, 0)),
        locked=any(entry.kind in _LOCKED for entry in codecs),
        elsewhere=any(not int.from_bytes(entry.body[:4]) & _IN_THIS_FILE for entry in sources),
    )


def _sides(entry: memoryview) -> tuple[int, int]:
    """The sides in a VisualSampleEntry (12.1.3)."""
    width, height = (int.from_bytes(entry[at : at + 2]) for at in _SIDES_AT)
    return width, height


def _entries(data: memoryview, *path: bytes) -> Iterator[_Box]:
    """The entries of the list at `path`."""
    for box in _inside(data, *path):
        yield from _boxes(box.body[_LIST_HEAD_BYTES:])


def _inside(data: memoryview, *path: bytes) -> Iterator[_Box]:
    """All boxes at `path` in `data`."""
    name, *rest = path
    for box in _boxes(data):
        if box.kind == name:
            if rest:
                yield from _inside(box.body, *rest)
            else:
                yield box


def _boxes(data: memoryview) -> Iterator[_Box]:
    """The boxes in `data`, up to the first invalid one. The last one may be cut."""
    at = 0
    for _ in range(_MOST_BOXES):
        size = int.from_bytes(data[at : at + 4])
        kind, head = bytes(data[at + 4 : at + 8]), _SMALL_HEAD_BYTES
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16]), _LARGE_HEAD_BYTES
        if size == 0:  # it extends to the end
            size = len(data) - at
        if size < head or at + head > len(data):
            return
        yield _Box(kind, data[at + head : at + size], at + size <= len(data))
        at += size
