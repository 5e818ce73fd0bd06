"""Clips that continue another clip: no frame of it is shown twice, and its sound continues."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.engine.clips import (
    SMALLEST,
    MakeSettings,
    chunks_of,
    clip_frames,
    few_frames,
    local,
    probe,
)
from tests.engine.test_sound import SOUND, samples
from tests.rows import ROWS
from wan_engine import Control, Engine, data_uri, toy
from wan_engine.errors import InvalidMedia, InvalidRequest, NotServed
from wan_engine.families import load_family
from wan_engine.media import ffmpeg
from wan_engine.runtime.recipes import Recipe
from wan_engine.schema import Carry, FirstPicture, SegmentInput, VideoResult, parse_request


def made(folder: Path, name: str = "first.mp4", *, seconds: float = 2, fps: int = 30) -> Path:
    """A clip of 320x240 with moving content and a tone of 1 kHz."""
    path = folder / name
    command = [ffmpeg.executable(), "-v", "error", "-y", "-f", "lavfi", "-i"]
    command += [f"testsrc2=s=320x240:r={fps}:d={seconds}", "-f", "lavfi", "-i"]
    command += [f"sine=1000:d={seconds}:r=48000", "-c:v", "libx264", "-pix_fmt", "yuv420p"]
    command += ["-preset", "ultrafast", "-crf", "12", "-c:a", "aac", str(path)]
    subprocess.run(command, check=True)
    return path


def continued(engine: Engine, clip: Path, **fields: Any) -> VideoResult:
    asked = {"prompt": "on it goes", "first_clip": data_uri(clip), "seed": 3, "seconds": 4}
    return engine.generate(parse_request({**asked, **fields}))


@pytest.fixture
def thirty_fps(make_settings: MakeSettings, loaded: Engine) -> Engine:
    engine = few_frames(make_settings(**SMALLEST, fps=30, safety="off", interpolation="blend"))
    engine.pool.main.family = loaded.pool.main.family
    return engine


@pytest.mark.system
@pytest.mark.full_size
def test_a_clip_is_continued_twice_without_a_repeated_frame(
    thirty_fps: Engine, tmp_path: Path
) -> None:
    first = made(tmp_path)
    second = local(continued(thirty_fps, first).video_url)
    third = local(continued(thirty_fps, second, keep_first_clip=False, seconds=3, seed=4).video_url)
    one, two, three = (clip_frames(path, 64, 48).astype(int) for path in (first, second, third))
    assert [len(one), len(two), len(three)] == [60, 120, 90]
    assert np.abs(one - two[:60]).mean() < 3  # the same frames, encoded again
    around = np.concatenate([two[59:62], two[-1:], three[:2]])
    steps = np.abs(np.diff(around, axis=0)).mean(axis=(1, 2, 3))
    assert (steps > 0.02).all()


@pytest.mark.full_size
def test_the_output_has_the_size_and_the_shape_of_the_first_clip(
    thirty_fps: Engine, tmp_path: Path
) -> None:
    result = continued(thirty_fps, made(tmp_path, fps=24), size="1280*720")
    assert result.plan is not None
    assert (result.plan.width, result.plan.height) == (1108, 832)  # 4:3
    assert (result.plan.given_frames, result.plan.frames) == (60, 120)
    assert "1108x832" in probe(local(result.video_url))


@pytest.mark.parametrize("kept", [True, False])
def test_the_segments_begin_with_the_last_frames_of_the_clip(
    thirty_fps: Engine, tmp_path: Path, kept: bool
) -> None:
    asked = {"prompt": "x", "first_clip": data_uri(made(tmp_path)), "seconds": 10, "seed": 1}
    order = parse_request({**asked, "keep_first_clip": kept}).order()
    choice = thirty_fps.choose(order)
    prepared = thirty_fps.prepare(order, choice, tmp_path, Control())
    media, expansion = prepared.media, prepared.expansion
    plan = thirty_fps.plan(order, choice, expansion.script, media)
    first, *later = plan.segments
    assert first.repeated == len(media.first_clip.tail) == thirty_fps.spec.overlap_frames  # type: ignore[union-attr]
    assert all(segment.repeated == first.repeated for segment in later) and later
    assert plan.made_frames == (240 if kept else 300)
    frames = np.concatenate(list(chunks_of(thirty_fps.load(), plan, media)))
    assert len(frames) == plan.source_frames >= plan.made_frames * thirty_fps.spec.fps // 30


@pytest.mark.parametrize(
    ("name", "continuation"),
    [("wan-tiny", "svi"), ("wan-tiny-ti2v", "latents"), ("wan-tiny-ti2v", "last_frames")],
)
def test_every_way_of_continuing_takes_the_frames_of_a_clip(
    tiny_cache: Path, name: str, continuation: Any
) -> None:
    """Another clip gives other frames from the first one on."""
    spec = replace(ROWS[name], continuation=continuation, steps=2)
    folder = toy.build(name, tiny_cache / name)
    family: Any = load_family(spec, folder, Recipe("cpu", "float32"))
    side = np.linspace(0, 255, 64, dtype=np.uint8)
    gradient = np.stack([np.broadcast_to(side, (64, 64))] * 3, axis=2)
    shown = []
    for frames in (np.stack([gradient] * 5), np.stack([gradient[:, ::-1]] * 5)):
        carry = Carry(frames)
        picture = FirstPicture(Image.fromarray(frames[-1]))
        clip = family.render(
            SegmentInput("x", "", (picture, carry), 64, 64, 13, seed=3), lambda _step: None
        )
        shown.append(np.concatenate(list(clip.frames)).astype(int))
        assert shown[-1].shape == (13, 64, 64, 3)
    assert (np.abs(shown[0] - shown[1]).mean(axis=(1, 2, 3)) > 0).all()


# --- sound
# -----------------------------------------------------------------------------------------


def level(heard: np.ndarray, start: float, end: float) -> float:
    """The mean amplitude between two times in seconds."""
    return float(np.abs(heard[round(start * 48000) : round(end * 48000)]).mean())


def test_the_sound_of_the_clip_continues_and_is_then_followed_by_silence(
    thirty_fps: Engine, tmp_path: Path
) -> None:
    heard = samples(local(continued(thirty_fps, made(tmp_path)).video_url))
    assert len(heard) == pytest.approx(4 * 48000, abs=2048)
    assert level(heard, 0.2, 1.9) > 0.05 > 0.001 > level(heard, 2.2, 3.8)


def test_the_new_part_alone_has_no_sound_of_the_clip(thirty_fps: Engine, tmp_path: Path) -> None:
    result = continued(thirty_fps, made(tmp_path), keep_first_clip=False, seconds=2)
    assert level(samples(local(result.video_url)), 0, 2) < 0.001


def test_the_callers_sound_is_heard_from_the_first_frame(
    thirty_fps: Engine, tmp_path: Path, data: Path
) -> None:
    audio = data_uri(data / "chime_4s.mp3")
    given = local(continued(thirty_fps, made(tmp_path), audio=audio).video_url)
    plain = local(continued(thirty_fps, made(tmp_path)).video_url)
    assert level(samples(given), 0, 1) != pytest.approx(level(samples(plain), 0, 1), rel=0.2)
    assert level(samples(given), 2.2, 3) > 0.001


def test_generated_sound_follows_the_sound_of_the_clip(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    engine = few_frames(make_settings(**SMALLEST, **SOUND, fps=30))
    heard = samples(local(continued(engine, made(tmp_path)).video_url))
    tone = samples(made(tmp_path, "again.mp4"))
    given = np.corrcoef(heard[4800:91200, 0], tone[4800:91200, 0])[0, 1]
    assert given > 0.9 and level(heard, 2.2, 3.8) > 0.001


def test_without_sound_there_is_no_track(thirty_fps: Engine, tmp_path: Path) -> None:
    result = continued(thirty_fps, made(tmp_path), generate_audio=False)
    assert "Audio" not in probe(local(result.video_url))


# --- refusals
# --------------------------------------------------------------------------------------


def test_a_clip_that_leaves_no_time_for_a_new_part_is_refused(
    thirty_fps: Engine, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        continued(thirty_fps, made(tmp_path, seconds=4), seconds=4)
    assert str(caught.value) == (
        'field "duration" must be at least 1 second more than first_clip, which has 4.00 seconds, '
        "got 4"
    )


@pytest.mark.parametrize(
    ("seconds", "fps", "why"),
    [
        (1.0, 30, "the video is shorter than 2 seconds"),
        (10.5, 30, "the video is longer than 10 seconds"),
        (3.0, 8, "the video must have at least 16 frames a second, got 8"),
    ],
)
def test_clips_of_other_lengths_and_rates_are_refused(
    thirty_fps: Engine, tmp_path: Path, seconds: float, fps: int, why: str
) -> None:
    with pytest.raises(InvalidMedia) as caught:
        continued(thirty_fps, made(tmp_path, seconds=seconds, fps=fps), seconds=15)
    assert str(caught.value) == f"Invalid first_clip URL: {why}"


def test_a_picture_is_refused_as_a_clip(thirty_fps: Engine, data: Path) -> None:
    with pytest.raises(InvalidMedia, match="Invalid first_clip URL"):
        continued(thirty_fps, data / "rocket_640x360.jpg")


def test_a_model_that_cannot_continue_a_clip_refuses_it_before_it_is_fetched(
    thirty_fps: Engine,
) -> None:
    thirty_fps.pool.main.spec = replace(thirty_fps.spec, takes=("first_picture",))
    asked = {"prompt": "x", "first_clip": "https://nowhere.invalid/a.mp4"}
    with pytest.raises(NotServed, match='field "first_clip" cannot be used: the model wan-tiny'):
        thirty_fps.generate(parse_request(asked))


def test_several_shots_become_one_when_a_clip_is_continued(
    thirty_fps: Engine, tmp_path: Path
) -> None:
    multi = {"shot_type": "multi", "enable_prompt_expansion": True}
    result = continued(thirty_fps, made(tmp_path), **multi)
    assert "A clip that continues another one has one shot" in result.warnings
    assert result.plan is not None and len(result.plan.shots) == 1
