"""Finds where the sound of an MP3 file begins, and checks that it is complete. Recorders put tags,
zeros or the rest of another frame before it, and a decoder silently skips all bytes between frames.

A truncated last frame proves nothing, because many programs cut at any byte. A file without a
header that counts its frames (Xing, VBRI) may end anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from wan_engine.errors import InvalidMedia

_LEAST_FRAMES = 3  # so many frames in a row are no coincidence
_SEARCHED_BYTES = 2**20
_HEADER_BYTES = 4
_ID3_HEADER_BYTES = 10
# Sync, any version, layer III, with or without a checksum (ISO 11172-3, 2.4.1.3).
_SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")
_MPEG_1 = 3
_MONO = 3
# The place of a header that counts the frames, in the first frame: after the side information,
# whose size depends on MPEG version and channels (LAME's mp3info-tag specification), or at
# Fraunhofer's fixed place.
_XING_AT = {(True, False): 36, (True, True): 21, (False, False): 21, (False, True): 13}
_VBRI_AT = 36
_MOST_FRAMES = 2**31  # a larger number is not a count
_LEAST_LOST_BYTES = 2048  # one or two frames
_PADDING_BYTES = (4096, 32 * 1024)  # clusters of memory cards, and at most a quarter
_PAGE = re.compile(rb"<(?:!doctype|html|\?xml)", re.IGNORECASE)
_TAG = re.compile(rb"ID3[\2-\4]|APETAGEX")
_LANDMARK = re.compile(_SYNC.pattern + b"|" + _TAG.pattern)
_KBPS = {
    _MPEG_1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


def is_frame(header: bytes) -> bool:
    """Whether a frame may begin with these bytes. Many other bytes look the same."""
    return _SYNC.match(header) is not None


def first_frame(data: bytes) -> int | None:
    """The start of the first of three frames in a row, or of all frames up to the end if there are
    fewer."""
    start = _behind_tags(data)
    for found in _SYNC.finditer(data, start, start + _SEARCHED_BYTES):
        if _row_begins(data, found.start()):
            return found.start()
    return None


def check_complete(data: bytes, start: int) -> None:
    """Raise `InvalidMedia` if, from the frame at `start` on, more than a hundredth is not frames,
    or is missing according to the file's own header, or if the file contains a page with an
    error."""
    sound, padding = _without_tail(data[start:])
    walk = _Walk(sound, allowed_bytes=_LEAST_LOST_BYTES + len(sound) // 100)
    least, most = _PADDING_BYTES
    walk.lost_bytes = max(0, padding - min(max(least, len(sound) // 4), most))
    while walk.at < len(sound) and not walk.fails:
        walk.step()
    walk.look_for_page(len(sound))
    counted = _counted_frames(sound)
    missing = counted - walk.frames
    if walk.fails or (counted < _MOST_FRAMES and missing > max(2, counted // 100)):
        raise InvalidMedia("audio", "the sound is damaged or cut")


@dataclass
class _Walk:
    """Walks from frame to frame, over tags between joined files and over other bytes."""

    sound: bytes
    allowed_bytes: int
    at: int = 0
    frames: int = 0
    lost_bytes: int = 0
    has_page: bool = False
    _last: int = 0

    @property
    def fails(self) -> bool:
        return self.has_page or self.lost_bytes > self.allowed_bytes

    def step(self) -> None:
        if length := _frame_bytes(self.sound[self.at : self.at + _HEADER_BYTES]):
            self._last, self.at, self.frames = self.at, self.at + length, self.frames + 1
            return
        # The last frame may be cut, and a tag may begin within its length.
        tag = _TAG.search(self.sound, self._last + _HEADER_BYTES, self.at)
        end = _behind_tags(self.sound, tag.start() if tag else self.at)
        if end <= self.at:
            end = self._landmark()
            self.lost_bytes += end - self.at
            self.look_for_page(end)
        self._last = self.at = end

    def look_for_page(self, end: int) -> None:
        """Look for an HTML page at the place where the last frame was cut."""
        self.has_page = self.has_page or _PAGE.search(self.sound, self._last, end) is not None

    def _landmark(self) -> int:
        """The place where frames or a tag continue, or the limit at which too much is missing."""
        most = min(len(self.sound), self.at + self.allowed_bytes - self.lost_bytes + 1)
        for found in _LANDMARK.finditer(self.sound, self.at + 1, most):
            if found[0][:1] != b"\xff" or _row_begins(self.sound, found.start()):
                return found.start()
        return most


def _counted_frames(sound: bytes) -> int:
    """The number of frames according to the first one, or 0 if it has no count."""
    version, channels = sound[1] >> 3 & 3, sound[3] >> 6
    at = _XING_AT[version == _MPEG_1, channels == _MONO]
    if sound[at : at + 4] in (b"Xing", b"Info") and sound[at + 7] & 1:
        return int.from_bytes(sound[at + 8 : at + 12])
    if sound[_VBRI_AT : _VBRI_AT + 4] == b"VBRI":
        return int.from_bytes(sound[_VBRI_AT + 14 : _VBRI_AT + 18])
    return 0


def _without_tail(data: bytes) -> tuple[bytes, int]:
    """The data without the tags and zeros at its end, and the number of zeros."""
    padding = 0
    while True:
        start = _last_tag(data)
        bare = data[:start] if start < len(data) else data.rstrip(b"\0")
        if len(bare) == len(data):
            return data, padding
        padding += len(data) - len(bare) if start == len(data) else 0
        data = bare


def _last_tag(data: bytes) -> int:
    """The start of a tag at the end of the file (ID3v1, ID3v1 extended, APE, Lyrics3, ID3v2.4 with
    a footer), or the file's length."""
    end = len(data)
    for length, name in ((128, b"TAG"), (227, b"TAG+")):
        if length <= end and data[end - length :].startswith(name):
            return end - length
    if data[-32:-24] == b"APETAGEX":
        head = 32 if data[-9] & 0x80 else 0
        return max(0, end - head - int.from_bytes(data[-20:-16], "little"))
    if data.endswith(b"LYRICS200") and data[-15:-9].isdigit():
        return max(0, end - 15 - int(data[-15:-9]))
    if data.endswith(b"LYRICSEND") and b"LYRICSBEGIN" in data[-5200:]:
        return data.rindex(b"LYRICSBEGIN")
    if data[-10:-7] == b"3DI":
        return max(0, end - 2 * _ID3_HEADER_BYTES - _syncsafe(data[-4:]))
    return end


def _behind_tags(data: bytes, at: int = 0) -> int:
    while at < (end := _tag_end(data, at)) <= len(data):
        at = end
    return at


def _tag_end(data: bytes, at: int) -> int:
    """The end of the tag at `at`, or `at` if no tag begins there."""
    head = data[at : at + 32]
    if head[:3] == b"ID3":
        footer = _ID3_HEADER_BYTES if head[5:6] > b"\x0f" and head[5] & 0x10 else 0
        return at + _ID3_HEADER_BYTES + _syncsafe(head[6:_ID3_HEADER_BYTES]) + footer
    if head[:3] == b"TAG":
        return at + (227 if head[3:4] == b"+" else 128)
    if head[:8] == b"APETAGEX":
        return at + 32 + int.from_bytes(head[12:16], "little")
    return at


def _syncsafe(size: bytes) -> int:
    """Seven bits of each byte count."""
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(size[::-1]))


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
    """The length of a frame according to its header, or 0 if the header is invalid."""
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
