"""`open_audio` with the real ffmpeg: what it decodes, what it refuses, and that nothing inside a
file makes ffmpeg open anything else."""

from __future__ import annotations

import struct
import subprocess
import time
import wave
from collections.abc import Callable
from functools import cache
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from wan_engine.control import Control
from wan_engine.errors import (
    InvalidMedia,
)
from wan_engine.media.audio import SAMPLE_RATE_HZ, AudioLimits, open_audio
from wan_engine.schema import AudioTrack

LIMITS = AudioLimits()
NOT_AUDIO = "Invalid audio URL: the file is not WAV or MP3"
UNDECODABLE = "Invalid audio URL: the file cannot be decoded as WAV or MP3"
CUT = "Invalid audio URL: the sound is damaged or cut"
EMPTY = "Invalid audio URL: the file holds no sound"
TOO_LONG = "Invalid audio URL: the sound is longer than 30 seconds"
fuzz = settings(
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


# --- files ---------------------------------------------------------------------------------------


def made(folder: Path, *arguments: str, name: str) -> bytes:
    """The bytes that ffmpeg writes for `arguments`."""
    path = folder / name
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y"]
    subprocess.run([*command, *arguments, str(path)], check=True, timeout=60)
    return path.read_bytes()


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """Makes a 440 Hz tone of `seconds` as the file `name`, with ffmpeg's own `options`."""
    folder = tmp_path_factory.mktemp("sounds")

    @cache
    def make(name: str, *options: str, seconds: float = 2) -> bytes:
        source = f"sine=440:duration={seconds}:sample_rate=44100"
        return made(folder, "-f", "lavfi", "-i", source, *options, name=name)

    return make


def wav(
    samples: bytes,
    *,
    claimed_bytes: int | None = None,
    rate: int = SAMPLE_RATE_HZ,
    channels: int = 2,
    bits: int = 16,
    codec: int = 1,
) -> bytes:
    """A WAV file whose header may be wrong."""
    claimed = len(samples) if claimed_bytes is None else claimed_bytes
    frame = channels * bits // 8
    form = struct.pack("<HHIIHH", codec, channels, rate, rate * frame % 2**32, frame % 2**16, bits)
    riff = b"RIFF" + struct.pack("<I", min(36 + claimed, 2**32 - 1)) + b"WAVEfmt "
    return riff + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", claimed) + samples


def id3(body: bytes) -> bytes:
    """An empty ID3 tag and `body`."""
    return b"ID3\4\0\0\0\0\0\0" + body


def id3_with_picture_address(address: str, body: bytes) -> bytes:
    """An ID3 tag whose cover picture is "at this address" (MIME type `-->`), and `body`."""
    picture = b"\0-->\0\3\0" + address.encode()
    frame = b"APIC" + struct.pack(">I", len(picture)) + b"\0\0" + picture
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frame + body


def one_second() -> bytes:
    return wav(bytes(SAMPLE_RATE_HZ * 4))


def decoded(track: AudioTrack) -> np.ndarray:
    """Samples [n, 2] in -1..1 of a decoded file. It must have the format that `AudioTrack`
    promises."""
    with wave.open(str(track.path)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (2, 2)
        assert file.getframerate() == SAMPLE_RATE_HZ
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    assert track.seconds == len(samples) / SAMPLE_RATE_HZ
    return samples / 32768


def pitch(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples[:, 0]))
    return float(np.argmax(spectrum) * SAMPLE_RATE_HZ / len(samples))


def refusal(data: bytes, folder: Path, limits: AudioLimits = LIMITS) -> str:
    with pytest.raises(InvalidMedia) as caught:
        open_audio(data, folder, limits, Control())
    assert caught.value.field == "audio"
    assert str(folder) not in str(caught.value)
    return str(caught.value)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- decoding ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        *[("-c:a", f"pcm_{kind}") for kind in ("u8", "s16le", "s24le", "s32le", "f32le", "f64le")],
        *[("-ac", count) for count in ("1", "2", "6")],
        *[("-ar", rate) for rate in ("8000", "22050", "48000", "96000", "192000")],
    ],
    ids=" ".join,
)
def test_every_kind_of_wav_is_decoded(
    sound: Callable[..., bytes], tmp_path: Path, options: tuple[str, ...]
) -> None:
    track = open_audio(sound("a.wav", *options), tmp_path, LIMITS, Control())
    assert track.seconds == pytest.approx(2, abs=0.001)
    assert pitch(decoded(track)) == pytest.approx(440, abs=1)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-b:a", "320k"),
        ("-q:a", "6"),
        ("-ac", "1", "-ar", "8000"),
        ("-id3v2_version", "0"),
        ("-id3v2_version", "0", "-write_xing", "0"),
        ("-metadata", "title=a title", "-write_id3v1", "1"),
    ],
    ids=["plain", "320k", "VBR", "8 kHz mono", "no tag", "no tag, no Xing", "both tags"],
)
def test_every_kind_of_mp3_is_decoded(
    sound: Callable[..., bytes], tmp_path: Path, options: tuple[str, ...]
) -> None:
    track = open_audio(sound("a.mp3", *options), tmp_path, LIMITS, Control())
    assert track.seconds == pytest.approx(2, abs=0.17)  # without a Xing header, the padding too
    assert pitch(decoded(track)) == pytest.approx(440, abs=1)


@pytest.mark.parametrize(
    "options",
    [
        ("-rf64", "always"),
        ("-rf64", "always", "-c:a", "pcm_s24le"),
        ("-c:a", "pcm_s24le", "-ac", "6"),  # WAVE_FORMAT_EXTENSIBLE
        ("-c:a", "mp3", "-b:a", "128k"),
        ("-c:a", "adpcm_ima_wav"),
        ("-c:a", "pcm_mulaw"),
        ("-write_bext", "1", "-metadata", "description=a recorder"),
        ("-fflags", "+bitexact", "-flags", "+bitexact"),
    ],
    ids=" ".join,
)
def test_chunks_that_recorders_write_into_a_wav_are_skipped(
    sound: Callable[..., bytes], tmp_path: Path, options: tuple[str, ...]
) -> None:
    data = sound("a.wav", *options)
    assert (data[:4] == b"RF64") is ("-rf64" in options)
    track = open_audio(data, tmp_path, LIMITS, Control())
    assert track.seconds == pytest.approx(2, abs=0.1)
    assert pitch(decoded(track)) == pytest.approx(440, abs=1)


def test_bw64_is_decoded(sound: Callable[..., bytes], tmp_path: Path) -> None:
    data = b"BW64" + sound("a.wav", "-rf64", "always")[4:] + b"LIST\x04\0\0\0INFO"
    track = open_audio(data, tmp_path, LIMITS, Control())
    assert track.seconds == 2
    assert pitch(decoded(track)) == pytest.approx(440, abs=1)


def test_big_endian_wav_is_refused_and_not_decoded_as_noise(tmp_path: Path) -> None:
    assert refusal(b"RIFX" + one_second()[4:], tmp_path) == NOT_AUDIO


@pytest.mark.parametrize("cut", [12, 20, 40, 60, 79, 80, 81])
def test_a_large_wav_that_ends_in_its_header(
    sound: Callable[..., bytes], tmp_path: Path, cut: int
) -> None:
    sound_or_refusal(sound("a.wav", "-rf64", "always")[:cut], tmp_path)


@pytest.mark.parametrize("size", [0, 2**32 - 1], ids=["0", "4 G"])
@pytest.mark.parametrize("start", [b"RIFF", b"RF64"])
def test_a_streamed_wav_does_not_know_its_sizes(
    sound: Callable[..., bytes], tmp_path: Path, start: bytes, size: int
) -> None:
    data = bytearray(sound("a.wav", *(("-rf64", "always") if start == b"RF64" else ())))
    struct.pack_into("<I", data, 4, size)
    struct.pack_into("<I", data, data.index(b"data") + 4, size)
    if start == b"RF64":
        data[20:44] = bytes(24)
    track = open_audio(bytes(data), tmp_path, LIMITS, Control())
    assert track.seconds == pytest.approx(2, abs=0.01)


def id3_with_padding(padding_bytes: int) -> bytes:
    size = bytes(padding_bytes >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\4\0\0" + size + bytes(padding_bytes)


def ape(body: bytes) -> bytes:
    return b"APETAGEX" + struct.pack("<IIII", 2000, len(body) + 32, 0, 0xA0000000) + bytes(8) + body


IN_FRONT = {
    "zeros": bytes(417),
    "many zeros": bytes(300_000),
    "one byte": b"x",
    "half a sync": b"\xff",
    "syncs": b"\xff\xfb" * 500,
    "headers": b"\xff\xfb\x90\0" * 500,
    "noise": bytes(range(256)) * 40,
    "a tag with padding": id3_with_padding(200_000),
    "two tags": id3_with_padding(100) * 2,
    "a tag and zeros": id3_with_padding(100) + bytes(100_000),
    "zeros and a tag": bytes(1000) + id3_with_padding(1000),
    "a tag that says too little": b"ID3\4\0\0\0\0\0\0" + bytes(70_000),
    "a tag that says too much": b"ID3\4\0\0\x7f\x7f\x7f\x7f" + bytes(100),
    "an APE tag": ape(bytes(5000)),
    "line breaks": b"\r\n" * 10,
}


@pytest.mark.parametrize("name", IN_FRONT)
def test_an_mp3_may_follow_other_bytes(
    sound: Callable[..., bytes], tmp_path: Path, name: str
) -> None:
    plain = sound("a.mp3", "-id3v2_version", "0")
    for options in ((), ("-ac", "1", "-ar", "8000"), ("-q:a", "6", "-write_xing", "0")):
        data = sound("a.mp3", "-id3v2_version", "0", *options)
        assert data != plain or not options
        track = open_audio(IN_FRONT[name] + data, tmp_path, LIMITS, Control())
        assert track.seconds == pytest.approx(2, abs=0.17)
        assert pitch(decoded(track)) == pytest.approx(440, abs=1)


def test_an_mp3_may_begin_with_half_a_frame(sound: Callable[..., bytes], tmp_path: Path) -> None:
    """A recording of a stream begins like that."""
    data = sound("a.mp3", "-id3v2_version", "0", "-write_xing", "0")
    track = open_audio(data[1000:], tmp_path, LIMITS, Control())
    assert track.seconds == pytest.approx(2, abs=0.2)


def test_the_search_for_a_frame_ends(tmp_path: Path) -> None:
    began = time.process_time()
    for piece in (b"\xff\xfb", b"\xff\xfb\x90\0", b"\xff\xfb\x14\0" + b"x" * 4, b"ID3" + bytes(7)):
        with pytest.raises(InvalidMedia):
            open_audio(b"\0" + piece * (2 * 2**20 // len(piece)), tmp_path, LIMITS, Control())
    assert time.process_time() - began < 3


def test_the_sounds_of_the_data_folder_are_decoded(data: Path, tmp_path: Path) -> None:
    for name, seconds in (("chime_4s.mp3", 4), ("chime_1s.wav", 1)):
        track = open_audio((data / name).read_bytes(), tmp_path, LIMITS, Control())
        assert track.seconds == pytest.approx(seconds, abs=0.05)


def test_the_two_channels_stay_apart(tmp_path: Path) -> None:
    left = np.zeros((SAMPLE_RATE_HZ, 2), "<i2")
    left[:, 0] = 8192
    samples = decoded(open_audio(wav(left.tobytes()), tmp_path, LIMITS, Control()))
    assert np.all(samples == (0.25, 0))


def test_sound_over_full_scale_is_clipped_not_wrapped(tmp_path: Path) -> None:
    loud = np.full((SAMPLE_RATE_HZ, 2), 2.0, "<f4").tobytes()
    track = open_audio(wav(loud, bits=32, codec=3), tmp_path, LIMITS, Control())
    assert decoded(track).min() > 0.99


def test_an_mp3_may_have_a_cover_and_titles(sound: Callable[..., bytes], tmp_path: Path) -> None:
    cover, plain = tmp_path / "cover.jpg", tmp_path / "plain.mp3"
    Image.new("RGB", (300, 300), "red").save(cover)
    plain.write_bytes(sound("a.mp3"))
    inputs = ("-i", str(plain), "-i", str(cover), "-map", "0", "-map", "1")
    tags = ("-c", "copy", "-id3v2_version", "3", "-metadata", "title=x", "-disposition:v", "8")
    data = made(tmp_path, *inputs, *tags, name="cover.mp3")
    assert b"APIC" in data
    folder = tmp_path / "job"
    folder.mkdir()
    assert open_audio(data, folder, LIMITS, Control()).seconds == pytest.approx(2, abs=0.05)
    assert names(folder) == {"audio.pcm.wav"}


def test_only_the_decoded_file_stays(sound: Callable[..., bytes], tmp_path: Path) -> None:
    for name in ("a.wav", "a.mp3"):
        track = open_audio(sound(name), tmp_path, LIMITS, Control())
        assert names(tmp_path) == {track.path.name}


# --- length --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.wav", ()),
        ("a.mp3", ()),
        ("a.mp3", ("-write_xing", "0")),
        ("a.mp3", ("-write_xing", "0", "-ar", "8000")),  # the most padding: 0.17 s
    ],
)
def test_thirty_seconds_are_accepted(
    sound: Callable[..., bytes], tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    track = open_audio(sound(name, *options, seconds=30), tmp_path, LIMITS, Control())
    assert track.seconds == pytest.approx(30, abs=0.2)


@pytest.mark.parametrize("name", ["a.wav", "a.mp3"])
@pytest.mark.parametrize("seconds", [30.5, 31, 45])
def test_more_than_thirty_seconds_are_refused(
    sound: Callable[..., bytes], tmp_path: Path, name: str, seconds: float
) -> None:
    assert refusal(sound(name, seconds=seconds), tmp_path) == TOO_LONG


def test_the_limit_is_a_setting(sound: Callable[..., bytes], tmp_path: Path) -> None:
    limits = AudioLimits(max_seconds=1.5)
    sentence = refusal(sound("a.wav"), tmp_path, limits)
    assert sentence == "Invalid audio URL: the sound is longer than 1.5 seconds"


def test_no_more_than_the_limit_is_decoded(tmp_path: Path) -> None:
    minutes = wav(bytes(8000 * 600), rate=8000, channels=1, bits=8)
    assert refusal(minutes, tmp_path) == TOO_LONG
    largest = max(path.stat().st_size for path in tmp_path.iterdir())
    assert largest < 32 * SAMPLE_RATE_HZ * 4


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    assert refusal(wav(b""), tmp_path) == EMPTY


# By a recorder that streams; by sox and espeak, mplayer, arecord, ffmpeg.
ENDLESS = [0, 0x7FFF_F000, 0x7FFF_FFFF - 36, 2**31 - 1, 2**31, 2**32 - 44, 2**32 - 1]


@pytest.mark.parametrize("claimed", ENDLESS, ids=hex)
def test_a_header_without_the_length_is_accepted(tmp_path: Path, claimed: int) -> None:
    data = wav(bytes(SAMPLE_RATE_HZ * 4), claimed_bytes=claimed)
    assert open_audio(data, tmp_path, LIMITS, Control()).seconds == 1


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ogg", "flac", "aac", "m4a", "aiff", "au", "caf", "mp2", "mka"])
def test_other_formats_are_refused(sound: Callable[..., bytes], tmp_path: Path, kind: str) -> None:
    assert refusal(sound(f"a.{kind}"), tmp_path) == NOT_AUDIO
    assert not names(tmp_path)


@pytest.mark.parametrize("kind", ["ogg", "flac", "aac", "m4a", "mka"])
def test_other_formats_after_our_headers_are_refused(
    sound: Callable[..., bytes], tmp_path: Path, kind: str
) -> None:
    data = sound(f"a.{kind}")
    assert refusal(id3(data), tmp_path) == UNDECODABLE
    assert refusal(one_second()[:12] + data, tmp_path) == UNDECODABLE


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"RIFF", b"ID", b"\xff", b"RIFF\0\0\0\0AVI ", bytes(99)]
)
def test_a_file_that_is_not_sound_is_refused(tmp_path: Path, data: bytes) -> None:
    assert refusal(data, tmp_path) == NOT_AUDIO


@pytest.mark.parametrize("header", [b"RIFF\0\0\0\0WAVE", b"ID3", b"\xff\xfb\x90\0"])
@pytest.mark.parametrize("body", [b"", bytes(1000), bytes(range(256)) * 100])
def test_a_header_alone_is_refused(tmp_path: Path, header: bytes, body: bytes) -> None:
    assert refusal(header + body, tmp_path) == UNDECODABLE


@pytest.mark.parametrize(
    "odd",
    [
        {"rate": 0},
        {"rate": 2**31 - 1},
        {"rate": 2**32 - 1},
        {"channels": 0},
        {"channels": 65535},
        {"bits": 0},
        {"bits": 65535},
        {"codec": 0},
        {"codec": 0xFFFE},
    ],
    ids=str,
)
def test_impossible_headers_are_refused(tmp_path: Path, odd: dict[str, int]) -> None:
    assert refusal(wav(bytes(100_000), **odd), tmp_path) == UNDECODABLE


def sound_or_refusal(data: bytes, folder: Path) -> None:
    """Everything that damaged bytes may lead to."""
    try:
        assert len(decoded(open_audio(data, folder, LIMITS, Control())))
    except InvalidMedia as error:
        assert str(error) in (NOT_AUDIO, UNDECODABLE, CUT, EMPTY, TOO_LONG)


@pytest.mark.parametrize("name", ["a.wav", "a.mp3"])
def test_a_cut_file_is_refused(sound: Callable[..., bytes], tmp_path: Path, name: str) -> None:
    data = sound(name)
    for tenth in range(10):
        refusal(data[: len(data) * tenth // 10], tmp_path)
    assert refusal(data[: len(data) // 2], tmp_path) == CUT


@pytest.mark.parametrize("name", ["a.wav", "a.mp3"])
@fuzz
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1))
def test_flipped_bits_give_a_sound_or_a_refusal(
    sound: Callable[..., bytes], tmp_path: Path, name: str, flips: list[tuple[float, int]]
) -> None:
    data = bytearray(sound(name))
    for place, bit in flips:
        # Squared, so that half of the flips hit the first quarter, where the headers are.
        data[int(place**2 * len(data))] ^= 1 << bit
    sound_or_refusal(bytes(data), tmp_path)


@fuzz
@given(
    st.sampled_from([one_second()[:12], one_second()[:40], id3(b""), b"\xff\xfb\x90\0"]),
    st.binary(),
)
def test_any_bytes_after_a_header_give_a_sound_or_a_refusal(
    tmp_path: Path, header: bytes, body: bytes
) -> None:
    sound_or_refusal(header + body * 20, tmp_path)
