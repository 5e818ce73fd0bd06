"""From bytes of a stranger to sound that is safe to mux: decoded once into a WAV file of our own.

ffmpeg sees the bytes only as a local file, with the demuxer named, protocols and formats
whitelisted and a time limit, so that no playlist or script inside them can make it open anything
else.
"""

from __future__ import annotations

import logging
import wave
from dataclasses import dataclass
from pathlib import Path

from wan_engine.control import Control
from wan_engine.errors import InvalidMedia
from wan_engine.media import ffmpeg
from wan_engine.schema import AudioTrack

log = logging.getLogger(__name__)

SAMPLE_RATE_HZ = 48_000
_DECODE_SECONDS = 30.0
_ENCODER_PADDING_SECONDS = 0.2  # an MP3 of 30 s decodes to a little more


@dataclass(frozen=True)
class AudioLimits:
    max_seconds: float = 30.0


def open_audio(data: bytes, folder: Path, limits: AudioLimits, control: Control) -> AudioTrack:
    """Decode a WAV or MP3 into `folder`. Raises `InvalidMedia` for anything else, or if too
    long."""
    kind = _kind(data)
    source, decoded = folder / f"audio.{kind}", folder / "audio.pcm.wav"
    source.write_bytes(data)
    longest = limits.max_seconds + _ENCODER_PADDING_SECONDS
    arguments = [
        *("-nostdin", "-protocol_whitelist", "file", "-format_whitelist", kind),
        *("-f", kind, "-i", str(source), "-map", "0:a:0", "-t", f"{longest + 1:g}"),
        *("-map_metadata", "-1", "-ac", "2", "-ar", str(SAMPLE_RATE_HZ), "-c:a", "pcm_s16le"),
        *("-f", "wav", "-y", str(decoded)),
    ]
    try:
        with ffmpeg.running(arguments, control, seconds=_DECODE_SECONDS):
            pass
        with wave.open(str(decoded)) as track:
            seconds = track.getnframes() / SAMPLE_RATE_HZ
    except (ffmpeg.Failed, wave.Error, EOFError, FileNotFoundError) as error:
        log.info("the audio could not be decoded: %s", error)
        raise InvalidMedia("audio", "the file cannot be decoded as WAV or MP3") from error
    source.unlink()
    if seconds == 0:
        raise InvalidMedia("audio", "the file holds no sound")
    if seconds > longest:
        raise InvalidMedia("audio", f"the sound is longer than {limits.max_seconds:g} seconds")
    return AudioTrack(decoded, seconds)


def _kind(data: bytes) -> str:
    """The demuxer for the first bytes: RIFF/WAVE header, ID3 tag or MPEG layer III frame."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "wav"
    layer_three = len(data) > 2 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2
    if data[:3] == b"ID3" or layer_three:
        return "mp3"
    raise InvalidMedia("audio", "the file is not WAV or MP3")
