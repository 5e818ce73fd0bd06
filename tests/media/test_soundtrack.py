"""The sounds of segments become one track: checked by number, no sample lost, none repeated."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from wan_engine.errors import EncodeFailed
from wan_engine.media.audio import SAMPLE_RATE_HZ
from wan_engine.media.soundtrack import Soundtrack, read
from wan_engine.schema import AudioTrack, Segment

FPS = 16
A_FRAME = SAMPLE_RATE_HZ // FPS


def track(path: Path, samples: np.ndarray, rate: int = SAMPLE_RATE_HZ) -> AudioTrack:
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, rate, 0, "NONE", ""))
        file.writeframes(np.stack([samples, samples], axis=1).astype("<i2").tobytes())
    return AudioTrack(path, len(samples) / rate)


def level(value: int, frames: int) -> np.ndarray:
    return np.full(frames * A_FRAME, value)


def written(soundtrack: Soundtrack, folder: Path) -> np.ndarray:
    made = soundtrack.write(folder / "made.wav")
    assert made is not None
    samples = read(made)
    assert len(samples) == round(made.seconds * SAMPLE_RATE_HZ)
    return samples[:, 0].astype(int)


def test_the_sound_of_one_segment_is_no_longer_than_its_frames(tmp_path: Path) -> None:
    soundtrack = Soundtrack(FPS)
    soundtrack.add(track(tmp_path / "a.wav", level(100, 33)), Segment(1, 33, 0, 32))
    assert written(soundtrack, tmp_path).tolist() == [100] * 32 * A_FRAME


def test_an_overlap_is_cross_faded_at_equal_power(tmp_path: Path) -> None:
    soundtrack = Soundtrack(FPS)
    soundtrack.add(track(tmp_path / "a.wav", level(1000, 33)), Segment(1, 33, 0, 33, 5))
    soundtrack.add(track(tmp_path / "b.wav", level(1000, 33)), Segment(2, 33, 5, 15))
    samples = written(soundtrack, tmp_path)
    assert len(samples) == 48 * A_FRAME
    join = slice(28 * A_FRAME, 33 * A_FRAME)
    assert set(samples[: join.start]) == set(samples[join.stop :]) == {1000}
    middle = samples[join][len(samples[join]) // 2]
    assert middle == pytest.approx(1000 * 2**0.5, abs=2)  # equal sounds add up; noise would not
    assert abs(np.diff(samples[join])).max() < 2  # no click


def test_a_continuous_tone_stays_loud(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    soundtrack = Soundtrack(FPS)
    for number, segment in enumerate((Segment(1, 33, 0, 33, 9), Segment(2, 33, 9, 24))):
        noise = generator.normal(0, 3000, 33 * A_FRAME)
        soundtrack.add(track(tmp_path / f"{number}.wav", noise), segment)
    samples = written(soundtrack, tmp_path)
    loudness = [part.std() for part in np.array_split(samples.astype(float), 57)]
    assert min(loudness) > 2700 and max(loudness) < 3300


def test_a_cut_between_shots_repeats_nothing(tmp_path: Path) -> None:
    soundtrack = Soundtrack(FPS)
    soundtrack.add(track(tmp_path / "a.wav", level(1, 17)), Segment(1, 17, 0, 16))
    soundtrack.add(track(tmp_path / "b.wav", level(2, 17)), Segment(2, 17, 0, 16))
    assert written(soundtrack, tmp_path).tolist() == [1] * 16 * A_FRAME + [2] * 16 * A_FRAME


def test_missing_or_short_sound_becomes_silence(tmp_path: Path) -> None:
    soundtrack = Soundtrack(FPS)
    soundtrack.add(None, Segment(1, 17, 0, 16))
    assert soundtrack.write(tmp_path / "none.wav") is None
    soundtrack.add(track(tmp_path / "b.wav", level(7, 4)), Segment(2, 17, 0, 16))
    expected = [0] * 16 * A_FRAME + [7] * 4 * A_FRAME + [0] * 12 * A_FRAME
    assert written(soundtrack, tmp_path).tolist() == expected


def test_times_do_not_drift_at_an_odd_frame_rate(tmp_path: Path) -> None:
    soundtrack = Soundtrack(7)
    for _ in range(5):
        soundtrack.add(None, Segment(1, 17, 0, 16))
    assert len(soundtrack._samples) == round(80 * SAMPLE_RATE_HZ / 7)


@pytest.mark.parametrize("content", [b"", b"not a wave", None])
def test_unreadable_sound_fails_the_job(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EncodeFailed):
        read(AudioTrack(path, 1.0))


def test_sound_of_another_rate_fails_the_job(tmp_path: Path) -> None:
    made = track(tmp_path / "a.wav", level(1, 4), rate=44_100)
    with pytest.raises(EncodeFailed, match="48 kHz"):
        Soundtrack(FPS).add(made, Segment(1, 17, 0, 16))


def test_each_shot_begins_at_its_own_second(tmp_path: Path) -> None:
    """81 frames of a shot are kept if 30 fps are made from 16, and the shot lasts five seconds."""
    soundtrack = Soundtrack(FPS)
    for shot in (1, 2, 3):
        sound = track(tmp_path / f"{shot}.wav", level(100 * shot, 81))
        soundtrack.add(sound, Segment(shot, 81, 0, 81))
        soundtrack.end_shot(5.0 * shot)
    samples = written(soundtrack, tmp_path)
    assert samples.tolist() == np.repeat([100, 200, 300], 5 * SAMPLE_RATE_HZ).tolist()


def test_a_shot_that_ends_early_is_followed_by_silence(tmp_path: Path) -> None:
    soundtrack = Soundtrack(FPS)
    soundtrack.add(track(tmp_path / "a.wav", level(100, 32)), Segment(1, 33, 0, 32))
    soundtrack.end_shot(2.5)
    assert written(soundtrack, tmp_path)[-8 * A_FRAME :].tolist() == [0] * 8 * A_FRAME
