"""Finds where in a sound anyone may be speaking. Plain statistics of the frequency band of voices,
no model."""

from __future__ import annotations

import wave

import numpy as np
from numpy.typing import NDArray

from wan_engine.schema import AudioTrack

_FRAME_SECONDS = 0.02
_VOICE_HZ = (300, 3400)  # the telephone band (ITU-T G.712)
_LEAST_DB = -50.0  # of full scale
_BELOW_LOUDEST_DB = 30.0
_LEAST_SECONDS = 0.5
_LEAD_SECONDS = 0.1


def keep_voice(track: AudioTrack, most_seconds: float) -> AudioTrack | None:
    """Cut the file of `track` to the window of at most `most_seconds` with the most sound in the
    band of voices, without silence at its ends. Returns None, and leaves no file, if there is no
    such sound."""
    with wave.open(str(track.path)) as file:
        rate = file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    heard = _heard(samples.astype(np.float32).mean(axis=1) / 32768, rate)
    window = _window(heard, round(most_seconds / _FRAME_SECONDS))
    if window is None:
        track.path.unlink()
        return None
    lead, longest = round(_LEAD_SECONDS * rate), round(most_seconds * rate)
    start, end = (round(one * _FRAME_SECONDS * rate) for one in window)
    start = max(0, start - lead)
    kept = samples[start : min(end + lead, start + longest)]
    with wave.open(str(track.path), "wb") as file:
        file.setparams((2, 2, rate, 0, "NONE", ""))
        file.writeframes(kept.tobytes())
    return AudioTrack(track.path, len(kept) / rate)


def _heard(mono: NDArray[np.float32], rate: int) -> NDArray[np.bool_]:
    """Whether each frame of the sound is loud in the band of voices."""
    length = round(_FRAME_SECONDS * rate)
    frames = mono[: len(mono) // length * length].reshape(-1, length)
    low, high = (round(edge * _FRAME_SECONDS) for edge in _VOICE_HZ)
    spectra = np.fft.rfft(frames * np.hanning(length), axis=1)  # hum would leak without a window
    bands = np.abs(spectra[:, low:high]) / length
    levels = 10 * np.log10((2 * bands**2).sum(axis=1) + 1e-12)
    loudest = np.quantile(levels, 0.95) if len(levels) else 0.0
    return np.asarray(levels > max(_LEAST_DB, loudest - _BELOW_LOUDEST_DB))


def _window(heard: NDArray[np.bool_], most: int) -> tuple[int, int] | None:
    """First and last frame (exclusive) of the `most` consecutive frames with the most voice."""
    counts = np.concatenate([[0], np.cumsum(heard)])
    starts = np.arange(max(1, len(heard) - most + 1))
    ends = np.minimum(starts + most, len(heard))
    start = int(np.argmax(counts[ends] - counts[starts]))
    inside = np.flatnonzero(heard[start : start + most])
    if len(inside) * _FRAME_SECONDS < _LEAST_SECONDS:
        return None
    return start + int(inside[0]), start + int(inside[-1]) + 1
