"""Joins the sounds of overlapping segments to one track as long as the clip, without repeats and
without clicks at the joins.

The sound of a clip takes 0.2 MB per second, so all of it is held in memory.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wan_engine.errors import EncodeFailed
from wan_engine.media.audio import SAMPLE_RATE_HZ
from wan_engine.schema import AudioTrack, Segment

_CHANNELS = 2
_SAMPLE_BYTES = 2
_FADE_SECONDS = 0.05

Samples = NDArray[np.int16]
"""int16 [n, 2], 48 kHz."""


class Soundtrack:
    """Takes the sound of each segment, in the order of the clip, and writes the whole track.

    The first `Segment.repeated` frames of a later segment repeat the previous segment's last
    frames, and so does their sound: the two sounds are cross-faded there. Times come from the
    number of frames at `fps`, so that nothing drifts. A segment without sound is silent.
    """

    def __init__(self, fps: int) -> None:
        self._fps = fps
        self._begun = 0  # samples before the shot
        self._frames = 0  # of the shot
        self._samples: Samples = np.zeros((0, _CHANNELS), np.int16)
        self._heard = False

    def add(self, sound: AudioTrack | None, segment: Segment) -> None:
        """Add the `sound` of the segment's frames, from its first frame. Sound after its last frame
        is left out."""
        first = max(0, self._frames - segment.repeated)
        self._frames += segment.shown
        begin, end = self._at(first), self._at(self._frames)
        new = np.zeros((end - begin, _CHANNELS), np.int16)
        if sound is not None:
            self._heard = True
            given = read(sound)[: end - begin]
            new[: len(given)] = given
        overlap = len(self._samples) - begin
        kept, new = new[overlap:], new[:overlap]
        self._samples[begin:] = _cross_faded(self._samples[begin:], new)
        self._samples = np.concatenate([self._samples, kept])

    def end_shot(self, seconds: float) -> None:
        """End the shot at `seconds` of the clip, and begin the next one. A shot may have a frame
        after its end; the sound of that frame is left out."""
        end = round(seconds * SAMPLE_RATE_HZ)
        missing = np.zeros((max(0, end - len(self._samples)), _CHANNELS), np.int16)
        self._samples = np.concatenate([self._samples[:end], missing])
        self._begun, self._frames = end, 0

    def write(self, path: Path) -> AudioTrack | None:
        """Write the whole track to `path`. Returns None if no segment has sound."""
        if not self._heard:
            return None
        return _written(self._samples, path)

    def _at(self, frame: int) -> int:
        return self._begun + round(frame * SAMPLE_RATE_HZ / self._fps)


def read(track: AudioTrack) -> Samples:
    """Return the samples of a track. Raises `EncodeFailed` for a file that is not 48 kHz stereo
    PCM."""
    try:
        with wave.open(str(track.path)) as file:
            kind = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise EncodeFailed("The sound that was made cannot be read") from error
    if kind != (_CHANNELS, _SAMPLE_BYTES, SAMPLE_RATE_HZ):
        raise EncodeFailed("The sound that was made is not 48 kHz stereo")
    samples: Samples = np.frombuffer(data, "<i2").reshape(-1, _CHANNELS)
    return samples


def after(first: AudioTrack, then: AudioTrack, seconds: float, path: Path) -> AudioTrack:
    """Write to `path` the sound of `first` for `seconds`, and then that of `then`, which begins at
    the same time. They are cross-faded. Raises `EncodeFailed`."""
    end = round(seconds * SAMPLE_RATE_HZ)
    fade = min(end, round(_FADE_SECONDS * SAMPLE_RATE_HZ))
    heard = np.zeros((end, _CHANNELS), np.int16)
    given, made = read(first)[:end], read(then)
    heard[: len(given)] = given
    joined = _cross_faded(heard[end - fade :], made[end - fade : end])
    return _written(np.concatenate([heard[: end - fade], joined, made[end:]]), path)


def _written(samples: Samples, path: Path) -> AudioTrack:
    with wave.open(str(path), "wb") as file:
        file.setparams((_CHANNELS, _SAMPLE_BYTES, SAMPLE_RATE_HZ, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    return AudioTrack(path, len(samples) / SAMPLE_RATE_HZ)


def _cross_faded(older: Samples, newer: Samples) -> Samples:
    """Cross-fade from `older` to `newer` at equal power. The two sounds are not correlated, so
    amplitudes whose squares add up to one keep the level."""
    angle = np.linspace(0, np.pi / 2, len(newer), dtype=np.float32)[:, None]
    mixed = older * np.cos(angle) + newer * np.sin(angle)
    rounded: Samples = np.clip(np.rint(mixed), -32768, 32767).astype(np.int16)
    return rounded
