"""Computes the features of a track for each frame of a video, with a speech model.

    48 kHz stereo ─> 16 kHz mono ─> speech model, 50 a second ─> 30 a second ─> one a video frame

The last two steps are those of Wan2.2-S2V's authors (Wan-Video/Wan2.2 at 42bf4cf,
`wan/modules/s2v/audio_encoder.py`), with which the transformer was trained.
"""

from __future__ import annotations

import math
import wave
from pathlib import Path

import numpy as np
import torch

from wan_engine.errors import EncodeFailed
from wan_engine.schema import AudioTrack

HEARD_HZ = 16_000
FEATURES_PER_SECOND = 50  # wav2vec2: a stride of 320 samples
_GRID_PER_SECOND = 30
_TRACK_HZ = 48_000  # the rate of an `AudioTrack`
_DECIMATION = _TRACK_HZ // HEARD_HZ
_TAPS_A_SIDE = 72  # 24 samples of the slower rate; aliases are 80 dB lower
_KAISER_BETA = 8.0
_CUTOFF = 0.95  # part of the slower rate's band


def heard(track: AudioTrack, seconds: float, silence_seconds: float) -> torch.Tensor:
    """Return the first `seconds` of `track` as input of a speech model, padded with silence to
    `seconds` and for `silence_seconds` more: float32 [n] at 16 kHz.

    The mean is 0 and the deviation 1 before silence is added, so that a short sound in a long clip
    is as loud to the model as the sound alone. Raises `EncodeFailed` for a file that the engine did
    not write.
    """
    samples = _slower(_mono(track.path)[: round(seconds * _TRACK_HZ)])
    deviation = samples.var(correction=0).add(1e-7).sqrt()  # as Wav2Vec2FeatureExtractor
    count = round((seconds + silence_seconds) * HEARD_HZ)
    found = torch.zeros(count)
    found[: len(samples)] = ((samples - samples.mean()) / deviation)[:count]
    return found


def _mono(path: Path) -> torch.Tensor:
    try:
        with wave.open(str(path)) as file:
            kind = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise EncodeFailed("The sound cannot be read") from error
    if kind != (2, 2, _TRACK_HZ):
        raise EncodeFailed("The sound is not 48 kHz stereo")
    samples = np.frombuffer(data, "<i2").reshape(-1, 2).astype(np.float32)
    return torch.from_numpy(samples.mean(axis=1) / 32768)


def _slower(samples: torch.Tensor) -> torch.Tensor:
    """Return every third sample, after a low-pass filter for the slower rate."""
    if not len(samples):
        return torch.zeros(1)
    places = torch.arange(-_TAPS_A_SIDE, _TAPS_A_SIDE + 1) / _DECIMATION * _CUTOFF
    window = torch.kaiser_window(len(places), periodic=False, beta=_KAISER_BETA)
    kernel = torch.sinc(places) * window
    kernel = (kernel / kernel.sum())[None, None]
    filtered = torch.nn.functional.conv1d(
        samples[None, None], kernel, stride=_DECIMATION, padding=_TAPS_A_SIDE
    )
    return filtered[0, 0]


def of_frames(layers: torch.Tensor, start_seconds: float, frames: int, fps: int) -> torch.Tensor:
    """Return the features [layers, n, width] of a speech model, 50 per second, at each of `frames`
    frames from `start_seconds`: [1, layers, width, frames]. Features after the end are zero."""
    count = int(layers.shape[1] / FEATURES_PER_SECOND * _GRID_PER_SECOND)
    grid = torch.nn.functional.interpolate(
        layers.transpose(1, 2), size=count, mode="linear", align_corners=True
    )
    found = grid.new_zeros(*grid.shape[:2], frames)
    for frame in range(frames):
        place = _even_round((start_seconds + frame / fps) * _GRID_PER_SECOND)
        if place < count:
            found[:, :, frame] = grid[:, :, place]
    return found[None]


def _even_round(number: float) -> int:
    """Round halves to the even number, as numpy does. 2.4999999999 counts as 2.5."""
    return round(round(number, 6))


def loudness(track: AudioTrack, fps: int, frames: int) -> list[float]:
    """Return the root mean square of the sound under each frame, for comparison with the lips."""
    samples, length = _mono(track.path), _TRACK_HZ / fps
    spans = (
        samples[round(at * length) : round((at + 1) * length)].double() for at in range(frames)
    )
    return [math.sqrt(float(one.square().mean())) if len(one) else 0.0 for one in spans]
