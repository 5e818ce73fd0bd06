"""Makes the sound of a finished clip with a model that takes its frames.

    clip.mp4 ─ read again ─> windows at the model's fps ─ family.hear ─> cross-faded ─ loudness ─┐
        └───────────────────────── frames copied as they are ────────────────────────> muxed <───┘

The frames are read from the clip in the job's folder, so memory holds none of them.
"""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wan_engine.catalog import ModelSpec
from wan_engine.control import Control
from wan_engine.errors import EncodeFailed
from wan_engine.media import ffmpeg
from wan_engine.media.audio import SAMPLE_RATE_HZ
from wan_engine.media.loudness import levelled
from wan_engine.media.soundtrack import Soundtrack
from wan_engine.media.windows import read_window
from wan_engine.plan import render_size, sound_windows
from wan_engine.runtime.finite import not_finite
from wan_engine.schema import AudioTrack, EncodedVideo, Plan, Shot, SoundInput, Waveform

Hear = Callable[[SoundInput, Callable[[int], None]], Waveform]
"""A model's `SoundFamily.hear`."""


def make_sound(
    hear: Hear, spec: ModelSpec, plan: Plan, video: EncodedVideo, control: Control
) -> AudioTrack:
    """Make the sound of `video`, in a file beside it in the job's folder: 48 kHz stereo at
    `loudness.LOUDNESS_LUFS`.

    Raises `OutOfMemory`, `NotFinite`, `EncodeFailed`, or the errors of `control`.
    """
    folder = video.path.parent
    size = render_size(plan.width, plan.height, spec)
    windows = sound_windows(plan, spec)
    track = Soundtrack(spec.fps)
    steps = spec.steps * len(windows)
    first = 0
    for index, window in enumerate(windows):

        def on_step(count: int, done: int = index * spec.steps) -> None:
            control.progress("sound", done + count, steps)

        on_step(0)
        first -= window.repeated
        try:
            frames = read_window(video.path, size, spec.fps, first, window.frames, control)
            seen = _shot_at(plan, (first + window.frames / 2) / spec.fps)
            asked = SoundInput(seen.prompt, seen.sound, frames, window.seed)
            heard = hear(asked, on_step)
            track.add(as_track(heard, folder / "heard.wav", control), window)
        except ffmpeg.Failed as error:
            raise EncodeFailed("The sound of the clip could not be made") from error
        first += window.repeated + window.shown
    made = track.write(folder / "made.wav")
    assert made is not None, "every window has a sound"
    return levelled(made, control)


def as_track(heard: Waveform, path: Path, control: Control) -> AudioTrack:
    """Convert a waveform of any rate to 48 kHz stereo. A waveform above full scale is scaled down
    as a whole, so that nothing clips. Raises `NotFinite` and `ffmpeg.Failed`."""
    samples = heard.samples
    if not np.isfinite(samples).all():
        raise not_finite("the model's sound")
    samples = samples / max(1.0, float(np.abs(samples).max(initial=0.0)))
    own = path.with_suffix(".own.wav")
    with wave.open(str(own), "wb") as file:
        file.setparams((samples.shape[1], 2, heard.rate_hz, 0, "NONE", ""))
        file.writeframes(np.rint(samples * 32767).astype("<i2").tobytes())
    arguments = [
        *("-nostdin", "-protocol_whitelist", "file", "-f", "wav", "-i", str(own)),
        *("-ac", "2", "-ar", str(SAMPLE_RATE_HZ), "-c:a", "pcm_s16le", "-f", "wav", "-y"),
    ]
    try:
        with ffmpeg.running([*arguments, str(path)], control):
            pass
    finally:
        own.unlink(missing_ok=True)
    return AudioTrack(path, len(samples) / heard.rate_hz)


def _shot_at(plan: Plan, seconds: float) -> Shot:
    """Return the shot that is shown at `seconds`."""
    index = sum(cut <= seconds for cut in plan.cut_seconds)
    return plan.shots[index]
