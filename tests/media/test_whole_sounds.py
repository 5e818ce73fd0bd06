"""Which WAV and MP3 files are complete: files that programs write are accepted, files with missing
sound are refused."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.media.test_audio import CUT, LIMITS, SAMPLE_RATE_HZ, refusal, wav
from tests.media.test_audio import sound as sound  # a fixture
from wan_engine.control import Control
from wan_engine.errors import InvalidMedia
from wan_engine.media import mp3
from wan_engine.media.audio import open_audio

Sound = Callable[..., bytes]
SECOND = np.random.default_rng(1).integers(-9000, 9000, SAMPLE_RATE_HZ * 2, "<i2").tobytes()
PAGE = b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head></html>"
BARE = ("-id3v2_version", "0", "-write_xing", "0", "-b:a", "128k")


def seconds(data: bytes, folder: Path) -> float:
    return open_audio(data, folder, LIMITS, Control()).seconds


# --- WAV -----------------------------------------------------------------------------------------


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def large(claimed: int, start: bytes = b"RF64") -> bytes:
    """A WAV of one second in the format for large files, whose header claims `claimed` bytes of
    sound."""
    sizes = struct.pack("<QQQI", len(SECOND) + 72, claimed, len(SECOND) // 4, 0)
    plain = wav(SECOND, claimed_bytes=2**32 - 1)
    return start + b"\xff" * 4 + b"WAVE" + chunk(b"ds64", sizes) + plain[12:]


WHOLE_WAVS = {
    "plain": wav(SECOND),
    "a chunk after it": wav(SECOND) + chunk(b"LIST", b"INFOISFT\6\0\0\0Lavf58"),
    "a large chunk after it": wav(SECOND) + chunk(b"id3 ", bytes(300_000)),
    "an odd chunk after it without padding": wav(SECOND) + chunk(b"LIST", b"INFO\0")[:-1],
    "a truncated chunk after it": wav(SECOND) + chunk(b"LIST", bytes(300_000))[:1000],
    "the header is counted": wav(SECOND, claimed_bytes=len(SECOND) + 44),
    "the last block is cut": wav(SECOND[:-1024], claimed_bytes=len(SECOND)),
    "odd, and not padded": wav(SECOND[:48_001], channels=1, bits=8, rate=48_001),
    "mono, 8 bits, short": wav(bytes([128]) * 2000, channels=1, bits=8, rate=8000),
    "zeros after it": wav(SECOND) + bytes(30_000),
    "another file after it": wav(SECOND) * 2,
    "large": large(len(SECOND)),
    "large, sizes not known": large(0),
    "large, sizes at their maximum": large(2**64 - 1),
    "larger still": large(len(SECOND), b"BW64"),
}


@pytest.mark.parametrize("name", WHOLE_WAVS)
def test_a_complete_wav_is_accepted(tmp_path: Path, name: str) -> None:
    wanted = 0.25 if "short" in name else 1
    assert seconds(WHOLE_WAVS[name], tmp_path) == pytest.approx(wanted, abs=0.01)


CUT_WAVS = {
    "half": wav(SECOND)[: len(SECOND) // 2],
    "all but a fiftieth": wav(SECOND)[: -len(SECOND) // 50],
    "one sample": wav(SECOND)[:48],
    "nothing after the header": wav(SECOND)[:44],
    "without its middle": wav(SECOND)[:60_000] + wav(SECOND)[80_000:],
    "three hours": wav(SECOND, claimed_bytes=3 * 3600 * SAMPLE_RATE_HZ * 4),
    "large": large(len(SECOND))[:100_000],
    "large, of 1 GB": large(2**30),
}


@pytest.mark.parametrize("name", CUT_WAVS)
def test_a_truncated_wav_is_refused(tmp_path: Path, name: str) -> None:
    assert refusal(CUT_WAVS[name], tmp_path) == CUT


# --- MP3 -----------------------------------------------------------------------------------------

ENCODED = [
    (),
    ("-b:a", "32k"),
    ("-b:a", "320k"),
    ("-q:a", "0"),
    ("-q:a", "9"),
    ("-abr", "1", "-b:a", "112k"),
    ("-ac", "1"),
    ("-joint_stereo", "0", "-ac", "2"),
    *(("-ar", rate) for rate in ("8000", "11025", "12000", "16000", "22050", "24000", "32000")),
    ("-ar", "48000", "-ac", "2"),
    ("-ar", "22050", "-ac", "2"),
    ("-reservoir", "0"),
    ("-f", "mp3", "-flush_packets", "1"),
]


HEADERS = (("-write_xing", "1"), ("-write_xing", "0"), BARE[:4], ("-write_id3v1", "1"))


@pytest.mark.parametrize("at", range(len(ENCODED)), ids=[" ".join(one) for one in ENCODED])
def test_the_output_of_encoders_is_accepted(sound: Sound, tmp_path: Path, at: int) -> None:
    """With and without a header that counts the frames. In turn, with the whole last frame, all but
    a byte, or half of it."""
    for number, header in enumerate(HEADERS, at):
        data = sound("b.mp3", *ENCODED[at], *header)
        cut = (0, 1, 50)[number % 3]
        assert seconds(data[: len(data) - cut], tmp_path) == pytest.approx(2, abs=0.2)


def ape(size: int, *, header: bool = True) -> bytes:
    flags = 0x8000_0000 if header else 0
    numbers = struct.pack("<III", 2000, size + 32, 1)
    head = b"APETAGEX" + numbers + struct.pack("<I", flags | 0x2000_0000) + bytes(8)
    foot = b"APETAGEX" + numbers + struct.pack("<I", flags) + bytes(8)
    return (head if header else b"") + COVER[:size] + foot


def id3v2(size: int, *, footer: bool = False) -> bytes:
    length = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    numbers = b"\4\0" + (b"\x10" if footer else b"\0") + length
    return b"ID3" + numbers + COVER[:size] + (b"3DI" + numbers if footer else b"")


COVER = np.random.default_rng(2).bytes(200_000).replace(b"\xff", b"x")
ID3V1 = b"TAG" + b"a title".ljust(125, b"\0")
EXTENDED = b"TAG+" + bytes(223)
LYRICS_1 = b"LYRICSBEGIN" + b"la la" * 100 + b"LYRICSEND"
LYRICS_2 = b"LYRICSBEGIN" + b"la" * 5000 + b"010011" + b"LYRICS200"
TAILS = {
    "ID3v1": ID3V1,
    "ID3v1 with a genre": ID3V1[:-1] + b"\x0c",
    "extended": EXTENDED + ID3V1,
    "APE": ape(100_000),
    "APE without its head": ape(100_000, header=False),
    "APE and ID3v1": ape(150_000) + ID3V1,
    "Lyrics3": LYRICS_1 + ID3V1,
    "Lyrics3 v2": LYRICS_2 + ID3V1,
    "ID3v2": id3v2(100_000),
    "ID3v2 with a footer": id3v2(100_000, footer=True),
    "two tags": ID3V1 + ID3V1,
    "a cluster of zeros": bytes(4096),
    "zeros and a tag": bytes(4000) + ID3V1[:-1] + b"\x0c",
    "a frame of another kind": b"\xff\xfd\x90\0" + bytes(500),
    "a few odd bytes": b"junk" * 100,
}


@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize("cut", [0, 200])
def test_an_mp3_may_be_followed_by_other_bytes(
    sound: Sound, tmp_path: Path, name: str, cut: int
) -> None:
    for options in ((), BARE):
        data = sound("a.mp3", *options)
        assert seconds(data[: len(data) - cut] + TAILS[name], tmp_path) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("cut", [0, 150])
def test_joined_files_are_accepted(sound: Sound, tmp_path: Path, cut: int) -> None:
    """The header of the first file counts only its own frames."""
    first, other = sound("a.mp3"), sound("a.mp3", *BARE)
    for part in (first, other):
        for between in (b"", ID3V1, ID3V1 + id3v2(150_000), ape(50_000) + ID3V1, bytes(500)):
            joined = part[: len(part) - cut] + between + sound("a.mp3", "-q:a", "4")
            assert seconds(joined, tmp_path) == pytest.approx(4, abs=0.3)


def test_titles_between_the_frames_of_a_station_are_accepted(sound: Sound, tmp_path: Path) -> None:
    data = sound("a.mp3", *BARE, seconds=8)
    starts = range(0, len(data), 16_000)
    titles = [b"\0", b"\1" + b"StreamTitle='';\0"]
    parts = [data[at : at + 16_000] + titles[at % 3 == 0] for at in starts]
    assert seconds(b"".join(parts), tmp_path) == pytest.approx(8, abs=0.3)


def test_a_header_without_a_count_is_accepted(sound: Sound, tmp_path: Path) -> None:
    """An encoder leaves it so if it could not seek back in the file."""
    data = sound("a.mp3", "-id3v2_version", "0")
    at = data.index(b"Info")
    for flags, count in ((15, 0), (0, 2**32 - 1), (15, 2**32 - 1), (0, 80)):
        odd = data[: at + 4] + struct.pack(">II", flags, count) + data[at + 12 :]
        assert seconds(odd, tmp_path) == pytest.approx(2, abs=0.2)


def vbri(data: bytes, frames: int) -> bytes:
    """A silent frame with Fraunhofer's header, followed by frames without one."""
    length = mp3._frame_bytes(data[:4])
    head = data[:4] + bytes(32) + b"VBRI" + struct.pack(">HHHII", 1, 0, 75, len(data), frames)
    return head.ljust(length, b"\0") + data


def test_fraunhofers_header_counts_frames_too(sound: Sound, tmp_path: Path) -> None:
    data = sound("a.mp3", *BARE)
    frames = round(len(data) / (144 * 128_000 / 44_100))
    assert seconds(vbri(data, frames), tmp_path) == pytest.approx(2, abs=0.2)
    assert refusal(vbri(data[: len(data) // 2], frames), tmp_path) == CUT


def cut(data: bytes) -> bytes:
    return data[: len(data) * 6 // 10]


def replaced(what: bytes, data: bytes) -> bytes:
    """Replaces a fifth in the middle by `what`."""
    start, length = len(data) * 2 // 5, len(data) // 5
    return data[:start] + (what * (length // len(what) + 1))[:length] + data[start + length :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "zeros in the middle": partial(replaced, b"\0"),
    "ones in the middle": partial(replaced, b"\xff"),
    "noise in the middle": partial(replaced, COVER),
    "pages in the middle": partial(replaced, PAGE),
    "syncs in the middle": partial(replaced, b"\xff\xfb"),
    "a short page after it": lambda data: cut(data) + PAGE,
    "a page after it": lambda data: cut(data) + PAGE + b"<p>Please try again</p>" * 400,
    "an answer in XML after it": lambda data: cut(data) + b'<?xml version="1.0"?><Error/>',
    "zeros after it": lambda data: cut(data) + bytes(len(data) * 4 // 10),
    "noise after it": lambda data: cut(data) + COVER[: len(data) * 4 // 10],
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize(
    "options",
    [(), BARE, ("-q:a", "2"), ("-ar", "16000", "-ac", "1", "-write_xing", "0")],
    ids=["counted", "not counted", "VBR", "16 kHz"],
)
def test_a_damaged_mp3_is_refused(
    sound: Sound, tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    data = sound("a.mp3", *options, seconds=20)
    assert refusal(DAMAGE[name](data), tmp_path) == CUT


@pytest.mark.parametrize("options", [(), ("-q:a", "2"), ("-ac", "1"), ("-ar", "16000")], ids=str)
def test_an_mp3_with_fewer_frames_than_its_header_counts_is_refused(
    sound: Sound, tmp_path: Path, options: tuple[str, ...]
) -> None:
    data = sound("a.mp3", *options, seconds=10)
    for kept in (0.3, 0.6, 0.95):
        assert refusal(data[: int(len(data) * kept)], tmp_path) == CUT
    half = len(data) // 2
    assert refusal(data[:half] + data[half + len(data) // 20 :], tmp_path) == CUT


def test_the_search_for_lost_bytes_ends() -> None:
    frame = b"\xff\xf3\x14\xc4" + bytes(20)  # 24 bytes, the shortest frame
    syncs, tags = b"\xff\xfb" * 20, b"ID3\3" + bytes(16)
    began = time.process_time()
    for piece in (frame, frame * 100 + syncs, frame * 100 + tags, frame * 40 + b"APETAGEX"):
        try:
            mp3.check_complete(piece * (5 * 2**20 // len(piece)), 0)
        except InvalidMedia:
            continue
    assert time.process_time() - began < 10
