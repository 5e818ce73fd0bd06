"""Decodes audio from untrusted bytes once, into a WAV file that is safe to mux.

ffmpeg sees the bytes only as a local file, with a named demuxer, a whitelist of protocols and
formats, and a time limit, so no playlist or script inside them can make it open anything else.
"""

from __future__ import annotations

import logging
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wan_engine.control import Control
from wan_engine.errors import EncodeFailed, InvalidMedia
from wan_engine.media import ffmpeg, mp3
from wan_engine.schema import AudioTrack

log = logging.getLogger(__name__)

SAMPLE_RATE_HZ = 48_000
_LARGE_WAVES = (b"RF64", b"BW64")  # EBU Tech 3306, ITU-R BS.2088
_RIFF_HEADER_BYTES = 12
# Recorders that stream write the maximum of 31 or 32 bits, minus their headers or a block.
_ENDLESS_BYTES, _TO_THE_END = 0x7F00_0000, 0xFFFF_FFFF
_LEAST_MISSING_BYTES = 128  # some count the header as sound
_FLOAT, _EXTENSIBLE = 3, 0xFFFE  # Microsoft's mmreg.h, WAVE_FORMAT_*
_DECODE_SECONDS = 30.0
_ENCODER_PADDING_SECONDS = 0.2  # an MP3 of 30 s decodes to a little more
_UNDECODED = (ffmpeg.Failed, wave.Error, EOFError, FileNotFoundError)


@dataclass(frozen=True)
class AudioLimits:
    max_seconds: float = 30.0


def open_audio(data: bytes, folder: Path, limits: AudioLimits, control: Control) -> AudioTrack:
    """Decode a WAV or MP3 into `folder`. Raises `InvalidMedia` for anything else or if it is too
    long, and `EncodeFailed` if this machine is to blame."""
    kind, sound = _sound(data)
    source, decoded = folder / f"audio.{kind}", folder / "audio.pcm.wav"
    source.write_bytes(sound)
    longest = limits.max_seconds + _ENCODER_PADDING_SECONDS
    try:
        seconds = _decode(kind, source, decoded, longest + 1, control)
    except _UNDECODED as error:
        if _is_here(error) or not decodes_silence(folder, control):
            log.error("the audio could not be decoded here: %s", error)
            raise EncodeFailed("The sound could not be decoded") from error
        log.info("the audio could not be decoded: %s", error)
        raise InvalidMedia("audio", "the file cannot be decoded as WAV or MP3") from error
    source.unlink()
    if seconds == 0:
        raise InvalidMedia("audio", "the file holds no sound")
    if seconds > longest:
        raise InvalidMedia("audio", f"the sound is longer than {limits.max_seconds:g} seconds")
    return AudioTrack(decoded, seconds)


def _decode(kind: str, source: Path, decoded: Path, most_seconds: float, control: Control) -> float:
    """Write `decoded` and return its length in seconds. Raises what is in `_UNDECODED`."""
    arguments = [
        *("-nostdin", "-protocol_whitelist", "file", "-format_whitelist", kind),
        *("-f", kind, "-i", str(source), "-map", "0:a:0", "-t", f"{most_seconds:g}"),
        *("-map_metadata", "-1", "-ac", "2", "-ar", str(SAMPLE_RATE_HZ), "-c:a", "pcm_s16le"),
        *("-f", "wav", "-y", str(decoded)),
    ]
    with ffmpeg.running(arguments, control, seconds=_DECODE_SECONDS):
        pass
    with wave.open(str(decoded)) as track:
        return float(track.getnframes() / SAMPLE_RATE_HZ)


def _is_here(error: Exception) -> bool:
    """Whether this machine is to blame. ffmpeg needs a second for a sound within its limit of
    bytes, so a timeout is this machine's fault."""
    return isinstance(error, ffmpeg.Failed) and error.here


def decodes_silence(folder: Path, control: Control) -> bool:
    """Whether ffmpeg decodes anything at all on this machine. Leaves nothing in `folder`."""
    source, decoded = folder / "silence.wav", folder / "silence.pcm.wav"
    try:
        with wave.open(str(source), "wb") as track:
            track.setparams((2, 2, SAMPLE_RATE_HZ, 0, "NONE", ""))
            track.writeframes(bytes(SAMPLE_RATE_HZ // 10 * 4))
        return _decode("wav", source, decoded, 1, control) > 0
    except _UNDECODED as error:
        log.error("not even silence could be decoded: %s", error)
        return False
    finally:
        source.unlink(missing_ok=True)
        decoded.unlink(missing_ok=True)


def _sound(data: bytes) -> tuple[str, bytes | memoryview]:
    """The demuxer for the content, and the bytes for it: RIFF/WAVE and its variants for large
    files, or MPEG layer III without leading tags and padding."""
    if data[8:12] == b"WAVE" and data[:4] in (b"RIFF", *_LARGE_WAVES):
        plain = data if data[:4] == b"RIFF" else _as_riff(data)
        _check_samples(plain)
        return "wav", plain
    start = mp3.first_frame(data)
    if start is not None:
        mp3.check_complete(data, start)
        return "mp3", memoryview(data)[start:]
    if data[:3] == b"ID3" or mp3.is_frame(data[:4]):
        return "mp3", data  # ffmpeg cannot decode it, and the error says so
    raise InvalidMedia("audio", "the file is not WAV or MP3")


def _check_samples(data: bytes) -> None:
    """Check that all samples are there and finite. ffmpeg accepts whatever is there, and turns NaN
    and infinity into the loudest sample. Raises `InvalidMedia`."""
    form = b""
    for name, length, body in _chunks(data):
        if name == b"fmt ":
            form = bytes(body)
        if name == b"data":
            missing = length - len(body)
            if length < _ENDLESS_BYTES and missing > max(_LEAST_MISSING_BYTES, length // 100):
                raise InvalidMedia("audio", "the sound is damaged or cut")
            if not _are_numbers(form, body):
                raise InvalidMedia("audio", "the sound has samples that are not numbers")
            return


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, memoryview]]:
    """Name, claimed length and present bytes of each chunk."""
    at = _RIFF_HEADER_BYTES
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], length, memoryview(data)[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _are_numbers(form: bytes, body: memoryview) -> bool:
    kind, bits = (int.from_bytes(form[at : at + 2], "little") for at in (0, 14))
    if kind == _EXTENSIBLE:
        kind = int.from_bytes(form[24:26], "little")
    size = {32: 4, 64: 8}.get(bits)
    if kind != _FLOAT or size is None:
        return True
    return bool(np.isfinite(np.frombuffer(body[: len(body) // size * size], f"<f{size}")).all())


def _as_riff(data: bytes) -> bytes:
    """A large WAV as a plain one, which it fits into. If its recorder never wrote the sizes,
    everything that follows is sound."""
    at = _RIFF_HEADER_BYTES
    while at + 8 <= len(data) and data[at : at + 4] != b"data":
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + length + length % 2
    claimed = int.from_bytes(data[28:36], "little") if data[12:16] == b"ds64" else 0
    size = claimed if 0 < claimed < _ENDLESS_BYTES else _TO_THE_END
    head = b"RIFF" + (len(data) - 8).to_bytes(4, "little") + data[8 : at + 4]
    return head + size.to_bytes(4, "little") + data[at + 8 :]
