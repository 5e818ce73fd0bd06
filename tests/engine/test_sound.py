"""The sound of a clip: its source, length and loudness, and what happens if none can be made."""

from __future__ import annotations

import subprocess
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.engine.clips import (
    SMALLEST,
    MakeSettings,
    RequestFor,
    few_frames,
    frame_hashes,
    local,
    probe,
)
from wan_engine import Control, Engine, data_uri
from wan_engine.errors import Cancelled, DeadlineExceeded, ModelMissing, NotFinite, OutOfMemory
from wan_engine.media import ffmpeg
from wan_engine.plan import sound_windows
from wan_engine.render import with_made_sound
from wan_engine.schema import EncodedVideo, Media

SOUND = {"sound_model": "wan-tiny-sound", "safety": "off"}


@pytest.fixture(scope="session")
def heard(settings_in: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """`wan-tiny` with few frames, and the toy model that makes sound."""
    engine = few_frames(settings_in(tmp_path_factory.mktemp("heard"), **SMALLEST, **SOUND))
    engine.load()
    return engine


@pytest.fixture
def sounding(make_settings: MakeSettings, heard: Engine) -> Engine:
    engine = few_frames(make_settings(**SMALLEST, **SOUND))
    for task, model in engine.pool.models.items():
        model.family = heard.pool.models[task].family
    return engine


def samples(path: Path) -> np.ndarray:
    """Samples [n, 2] in -1..1."""
    wav = path.with_suffix(".wav")
    command = [ffmpeg.executable(), "-v", "error", "-i", str(path), "-c:a", "pcm_s16le", "-y"]
    subprocess.run([*command, str(wav)], check=True)
    with wave.open(str(wav)) as file:
        data = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return data.reshape(-1, file.getnchannels()) / 32768


def loudness(path: Path) -> float:
    """The loudness in LUFS, by ffmpeg's meter."""
    command = [ffmpeg.executable(), "-hide_banner", "-i", str(path), "-af", "ebur128", "-f", "null"]
    told = subprocess.run([*command, "-"], capture_output=True, text=True, check=True).stderr
    return float(told.rpartition("I:")[2].split()[0])


def test_a_clip_without_the_callers_sound_gets_a_generated_one(
    sounding: Engine, engine: Engine, request_for: RequestFor
) -> None:
    progress: list[str] = []
    control = Control(on_progress=lambda one: progress.append(one.stage))
    result = sounding.generate(request_for(), control)
    made = local(result.video_url)
    silent = local(engine.generate(request_for(generate_audio=False)).video_url)
    # The picture is unchanged: to the bit that of a clip without a track.
    assert frame_hashes(made) == frame_hashes(silent)
    assert "Audio: aac" in probe(made) and "Audio" not in probe(silent)
    assert len(samples(made)) / 48_000 == pytest.approx(5.0, abs=0.03)
    assert loudness(made) == pytest.approx(-16, abs=1)
    assert np.abs(samples(made)).max() < 0.99
    assert "sound" in progress and control.stage_seconds["sound"] > 0
    assert any("wan-tiny-sound is a toy" in warning for warning in result.warnings)
    assert not any("silent" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("fields", "track", "warned"),
    [
        ({}, "silence", False),
        ({"generate_audio": True}, "silence", True),
        ({"generate_audio": False}, None, False),
    ],
)
def test_without_a_model_for_sound_the_track_is_silent(
    engine: Engine, request_for: RequestFor, fields: dict[str, Any], track: str, warned: bool
) -> None:
    result = engine.generate(request_for(**fields))
    path = local(result.video_url)
    if track is None:
        assert "Audio" not in probe(path)
    else:
        assert not samples(path).any() and len(samples(path)) / 48_000 == pytest.approx(5, abs=0.03)
    assert any("silent track" in one for one in result.warnings) == warned


def test_the_callers_sound_keeps_its_loudness_and_lips_cause_a_warning(
    sounding: Engine, request_for: RequestFor, data: Path
) -> None:
    result = sounding.generate(
        request_for(audio=data_uri(data / "chime_4s.mp3"), generate_audio=False)
    )
    path = local(result.video_url)
    # The loudness is unchanged: the meter's gate ignores the silence after the sound.
    assert loudness(path) == pytest.approx(loudness(data / "chime_4s.mp3"), abs=0.5)
    assert len(samples(path)) / 48_000 == pytest.approx(5, abs=0.03)
    assert (
        "The audio is added to the clip, but wan-tiny does not move lips to it" in result.warnings
    )


def test_the_plan_says_which_model_makes_the_sound_and_why(
    sounding: Engine, request_for: RequestFor
) -> None:
    plan = sounding.dry_run(request_for())
    assert (plan["sound"], plan["sound_model"]) == ("made", "wan-tiny-sound")
    assert plan["sound_reason"] and plan["undone"] == []


@pytest.mark.parametrize(
    "error",
    [OutOfMemory("too little"), NotFinite("the vocoder"), ValueError("a shape"), KeyError("bug")],
)
def test_if_no_sound_can_be_made_the_picture_is_kept(
    sounding: Engine, request_for: RequestFor, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: Any) -> None:
        raise error

    model = sounding.pool.models["sound-for-video"]
    monkeypatch.setattr(type(model.family), "hear", broken)
    monkeypatch.setattr("wan_engine.pool.recipes.leaner", lambda _recipe: None)
    result = sounding.generate(request_for())
    assert not samples(local(result.video_url)).any()
    assert "The sound could not be made: the clip has a silent track" in result.warnings
    assert len(frame_hashes(local(result.video_url))) == 5 * sounding.spec.fps


@pytest.mark.parametrize(
    "error",
    [
        Cancelled(),
        DeadlineExceeded(5),
        ModelMissing("download it"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
    ],
)
def test_what_is_not_the_sounds_own_fault_ends_the_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def broken() -> Any:
        raise error

    monkeypatch.setattr("wan_engine.render.device_answers", lambda _device: False)
    video = EncodedVideo(tmp_path / "clip.mp4", frames=80, bytes=1)
    plan: Any = SimpleNamespace(given_frames=0, fps=16)
    with pytest.raises(type(error)) as caught:
        with_made_sound(broken, lambda work: work(), plan, Media(), video, Control(), "cpu")
    assert caught.value is error


def test_a_job_can_be_cancelled_while_its_sound_is_made(
    sounding: Engine, request_for: RequestFor
) -> None:
    control = Control()

    def at_sound(progress: Any) -> None:
        if progress.stage == "sound" and progress.step == 2:
            control.cancel()

    control._on_progress = at_sound
    with pytest.raises(Cancelled):
        sounding.generate(request_for(), control)
    assert not list(sounding.settings.output_dir.rglob("*.mp4"))
    sounding.generate(request_for(generate_audio=False))  # the engine still works


def test_windows_cover_every_length_and_are_no_longer_than_the_model_supports(
    engine: Engine, request_for: RequestFor
) -> None:
    from wan_engine.catalog import CATALOG
    from wan_engine.schema import Script, ScriptShot

    spec = CATALOG["kandinsky-6-lite-sound"]
    order = request_for().order()
    for seconds in range(2, 16):
        script = Script((ScriptShot("x", seconds),))
        media = engine.prepare(order, engine.choose(order), Path(), Control()).media
        plan = engine.plan(replace(order, duration=seconds), engine.choose(order), script, media)
        windows = sound_windows(plan, spec)
        assert sum(one.shown for one in windows) == seconds * 24
        assert len({one.seed for one in windows}) == len(windows)
        assert all(one.frames % 4 == 1 and one.frames <= 125 for one in windows)
        assert len(windows) == -(-(seconds * 24 - 5) // 120)
