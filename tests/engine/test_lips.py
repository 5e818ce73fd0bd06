"""A speaking picture: whole jobs on the tiny S2V model, and its frames beside the sound."""

from __future__ import annotations

import json
import re
import subprocess
import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.engine.clips import MakeSettings, RequestFor, local, probe
from tests.test_probes import PROBES
from wan_engine import Control, Engine, Settings, data_uri, toy
from wan_engine.catalog import models
from wan_engine.errors import Cancelled
from wan_engine.media import ffmpeg
from wan_engine.plan import PlanLimits, make_plan
from wan_engine.render import _Conditions
from wan_engine.schema import AudioTrack, DrivingSound, Media, Script, ScriptShot

NAME = "wan-tiny-s2v"
RATE = 48_000
Samples = NDArray[np.float64]


def speech(seconds: float, seed: int = 3) -> Samples:
    """Noise in syllables: four times a second louder and softer, with pauses, like speech."""
    generator = np.random.default_rng(seed)
    times = np.arange(round(seconds * RATE)) / RATE
    points = generator.uniform(0, 1, round(seconds * 4) + 2) ** 2
    envelope = np.interp(times * 4, np.arange(len(points)), points)
    return envelope * generator.normal(0, 0.2, len(times))


def written(path: Path, samples: Samples) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound of twenty seconds, longer than any clip."""
    return written(tmp_path_factory.mktemp("speech") / "speech.wav", speech(20.0))


@pytest.fixture(scope="module")
def tiny(settings_in: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """`wan-tiny-s2v` and `wan-tiny`, loaded once, at the smallest size, with one step and a quarter
    of the frames, because encoding takes most of the time."""
    small = {"preset": "superfast", "render_area": 128 * 64, "safety": "off"}
    engine = Engine(settings_in(tmp_path_factory.mktemp("lips"), speech_model=NAME, **small))
    model = engine.pool.models["speech-to-video"]
    model.spec = replace(model.spec, steps=1, guidance_scale=1.0, fps=4, max_frames=20)
    return engine


# --- whole jobs ----------------------------------------------------------------------------------


def test_a_sound_makes_the_picture_speak_and_is_the_sound_of_the_clip(
    tiny: Engine, request_for: RequestFor, spoken: Path
) -> None:
    request = request_for(audio=data_uri(spoken))
    planned = tiny.dry_run(request)
    assert (planned["model"], planned["task"], planned["undone"]) == (NAME, "speech-to-video", [])
    assert (planned["reason"], planned["sound"]) == (
        "the request has audio, and lips move to it",
        "given",
    )
    result = tiny.generate(request)
    assert result.model == NAME and result.plan is not None
    assert result.plan.frames == result.plan.source_frames == 20
    said = probe(local(result.video_url))
    assert "Duration: 00:00:05.00" in said and re.search(r"Audio: aac.*48000 Hz, stereo", said)


def test_without_a_sound_another_model_makes_the_clip_and_no_switch_mutes_a_sound(
    tiny: Engine, request_for: RequestFor, spoken: Path
) -> None:
    assert tiny.dry_run(request_for())["model"] == "wan-tiny"
    muted = request_for(audio=data_uri(spoken), generate_audio=False)
    assert tiny.dry_run(muted)["model"] == NAME


def test_a_longer_clip_is_exact_however_long_the_sound_is(
    tiny: Engine, request_for: RequestFor, tmp_path: Path
) -> None:
    short = written(tmp_path / "short.wav", speech(4.0))
    result = tiny.generate(request_for(audio=data_uri(short), duration=10))
    assert result.plan is not None and len(result.plan.segments) == 2
    assert {segment.frames for segment in result.plan.segments} == {20}
    assert "Duration: 00:00:10.00" in probe(local(result.video_url))


@pytest.mark.parametrize("stage", ["prepare", "denoise", "decode", "encode"])
def test_a_job_can_be_cancelled_in_every_stage(
    tiny: Engine, request_for: RequestFor, spoken: Path, stage: str
) -> None:
    seen: list[str] = []

    def cancelling(progress: Any) -> None:
        seen.append(progress.stage)
        if progress.stage == stage:
            control.cancel()

    control = Control(on_progress=cancelling)
    with pytest.raises(Cancelled):
        tiny.generate(request_for(audio=data_uri(spoken)), control)
    assert seen[-1] == stage
    assert list(tiny.settings.scratch_dir.iterdir()) == []


# --- sound of each shot --------------------------------------------------------------------------


def test_a_shot_hears_the_sound_from_its_own_start(tiny: Engine, request_for: RequestFor) -> None:
    """At 30 fps a shot keeps one more frame of the model, and this does not move later frames."""
    from PIL import Image

    order = replace(request_for(audio="https://example.com/a.wav", duration=15).order(), seed=1)
    media = Media(Image.new("RGB", (640, 360)), AudioTrack(Path("a.wav"), 20.0))
    script = Script((ScriptShot("a", 6), ScriptShot("b", 4), ScriptShot("c", 5)))
    plan = make_plan(order, script, media, toy.MODELS[NAME], PlanLimits(fps=30))
    given, takes = _Conditions(plan, media), ("first_picture", "driving_sound")
    found = [
        next(one for one in given.of(shot, segment, takes) if isinstance(one, DrivingSound))
        for shot in plan.shots
        for segment in shot.segments
    ]
    assert [one.start_seconds for one in found] == [0.0, 84 / 16, 6.0, 10.0]
    assert {one.clip_seconds for one in found} == {15.0}


def test_the_sound_of_each_latent_frame_follows_loudness(
    tiny: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With random weights, the distance of a latent frame's sound features from those of silence
    follows the loudness of its own four video frames and the four before, which it hears as well,
    and not of frames one second later."""
    import torch

    from wan_engine.families.sound_features import heard, loudness

    generator = np.random.default_rng(5)
    bursts = np.repeat([0, 0, *generator.integers(0, 2, 30)], RATE // 2)
    samples = bursts * generator.normal(0, 0.2, len(bursts))
    track = stereo(tmp_path / "bursts.wav", samples)
    with torch.inference_mode():
        model: Any = tiny.pool.load(tiny.pool.models["speech-to-video"], Control())
        monkeypatch.setattr(model.pipeline, "fps", 16)
        sound = model.pipeline.hear(heard(track, 15.0, 1.0), 0.0, 240)
        tokens, _ = model.pipeline.transformer._heard(sound)
    loud = np.array(loudness(track, 16, 256)).reshape(-1, 4).mean(axis=1)
    numbers = tokens.flatten(1).double().numpy()  # [60 latent frames, ...]
    loudly = np.linalg.norm(numbers - numbers[3], axis=1)  # the first second is silent
    both = (loud + np.roll(loud, 1)) / 2
    assert correlation(loudly, both[:60]) > 0.8
    assert abs(correlation(loudly, both[4:64])) < 0.5


def stereo(path: Path, samples: Samples) -> AudioTrack:
    """A track in the format of `open_audio`."""
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, RATE, 0, "NONE", ""))
        file.writeframes((np.stack([samples] * 2, axis=1) * 32767).astype("<i2").tobytes())
    return AudioTrack(path, len(samples) / RATE)


def correlation(one: Samples, other: Samples) -> float:
    return float(np.corrcoef(one, other)[0, 1])


# --- picture and sound together ------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The probe that is as bright as its sound is loud, as an installed package of this process."""
    folder = tmp_path / "models" / "probe-lips"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Probe"}))
    monkeypatch.syspath_prepend(str(PROBES))
    models._added_models.cache_clear()
    yield folder.parent
    monkeypatch.undo()
    models._added_models.cache_clear()


def light_and_loudness(path: Path, fps: int) -> tuple[Samples, Samples]:
    """The brightness of each frame of a clip, and the loudness of the sound during it."""
    read = [ffmpeg.executable(), "-v", "error", "-i", str(path)]
    gray = [*read, "-vf", "scale=1:1:flags=area", "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    mono = [*read, "-map", "0:a", "-ac", "1", "-f", "s16le", "-"]
    light, heard = (
        subprocess.run(command, capture_output=True, check=True).stdout for command in (gray, mono)
    )
    frames = np.frombuffer(light, np.uint8).astype(float)
    samples = np.frombuffer(heard, "<i2").astype(float)[: len(frames) * RATE // fps]
    parts = np.array_split(samples, len(frames))
    return frames, np.array([np.sqrt((part**2).mean()) for part in parts])


@pytest.mark.parametrize(
    ("fps", "fields"),
    [
        ("native", {"duration": 10}),
        (30, {"duration": 10}),
        (30, {"duration": 15, "shot_type": "multi", "enable_prompt_expansion": True}),
    ],
)
def test_picture_and_sound_stay_in_time_through_joins_shots_and_the_clips_own_rate(
    make_settings: MakeSettings,
    request_for: RequestFor,
    spoken: Path,
    installed: Path,
    fps: Any,
    fields: dict[str, Any],
) -> None:
    values = {"speech_model": "probe-lips", "model": "none", "models_dir": installed, "fps": fps}
    small = {"preset": "superfast", "render_area": 128 * 64, "safety": "off"}
    engine = Engine(make_settings(interpolation="blend", **values, **small))
    result = engine.generate(request_for(audio=data_uri(spoken), **fields))
    assert result.plan is not None and len(result.plan.segments) > 1
    rate = result.plan.fps
    light, loud = light_and_loudness(local(result.video_url), rate)
    assert len(light) == result.plan.frames
    delays = range(-4, 5)
    edge = slice(8, -8)
    found = [correlation(np.roll(light, -delay)[edge], loud[edge]) for delay in delays]
    best = int(np.argmax(found))
    assert found[best] > 0.8 and abs(delays[best]) <= 1
