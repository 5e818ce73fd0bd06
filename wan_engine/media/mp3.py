"""Where the sound of an MP3 file begins: recorders put tags, zeros or the rest of another frame in
front of it."""

from __future__ import annotations

import re

_LEAST_FRAMES = 3  # in a row, before anything is taken for more than chance
_SEARCHED_BYTES = 2**20
_HEADER_BYTES = 4
_ID3_HEADER_BYTES = 10
# Sync, any version, layer III, with or without a checksum (ISO 11172-3, 2.4.1.3).
_SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")
_MPEG_1 = 3
_KBPS = {
    _MPEG_1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


def is_frame(header: bytes) -> bool:
    """Whether a frame may begin so. Many other bytes do as well."""
    return _SYNC.match(header) is not None


def first_frame(data: bytes) -> int | None:
    """Where the first of three frames in a row begins, or of all there are up to the end."""
    start = _behind_tags(data)
    for found in _SYNC.finditer(data, start, start + _SEARCHED_BYTES):
        if _row_begins(data, found.start()):
            return found.start()
    return None


def _behind_tags(data: bytes) -> int:
    at = 0
    while data[at : at + 3] == b"ID3":
        size = data[at + 6 : at + _ID3_HEADER_BYTES]
        end = (
            at
            + _ID3_HEADER_BYTES
            + sum((byte & 0x7F) << 7 * n for n, byte in enumerate(size[::-1]))
        )
        if end > len(data):
            break
        at = end
    return at


def _row_begins(data: bytes, at: int) -> bool:
    kinds = set()
    for number in range(_LEAST_FRAMES):
        if at == len(data) and number:
            return True
        length = _frame_bytes(data[at : at + _HEADER_BYTES])
        if not length:
            return False
        kinds.add((data[at + 1] & 0x1E, data[at + 2] & 0x0C))  # version, layer and sample rate
        at += length
    return len(kinds) == 1


def _frame_bytes(header: bytes) -> int:
    """0 for what is no header of a frame with a length."""
    if len(header) < _HEADER_BYTES or not is_frame(header):
        return 0
    version, rate = header[1] >> 3 & 3, header[2] >> 2 & 3
    bits = header[2] >> 4
    if version not in _RATES_HZ or rate == 3 or bits == 15:
        return 0
    kbps = _KBPS[_MPEG_1 if version == _MPEG_1 else 2][bits]
    samples_bytes = 144_000 if version == _MPEG_1 else 72_000
    length = samples_bytes * kbps // _RATES_HZ[version][rate]
    return length and length + (header[2] >> 1 & 1)
