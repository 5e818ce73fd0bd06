"""What a clip should take, from what the last one took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from wan_engine import Settings, timings
from wan_engine.schema import Plan, Segment, Shot

MakeSettings = Callable[..., Settings]
STAGES = {"prepare": 50.0, "load": 90.0, "denoise": 6.0, "decode": 3.0, "encode": 1.0}


def plan_of(*sampled: int, width: int = 64) -> Plan:
    segments = tuple(Segment(1, frames, 0, frames) for frames in sampled)
    frames = sum(sampled)
    return Plan(64, 64, width, 64, 64, 64, 16, frames, 1, (Shot("", segments, frames),), 16)


def test_a_clip_takes_as_long_for_a_frame_as_the_last_one(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(cache_dir=tmp_path)
    assert timings.expected_seconds(settings, plan_of(80), "tiny") is None
    timings.remember(settings, plan_of(80), "tiny", STAGES)
    assert timings.expected_seconds(settings, plan_of(80), "tiny") == pytest.approx(10)
    assert timings.expected_seconds(settings, plan_of(80, 80), "tiny") == pytest.approx(20)


def test_another_kind_of_work_is_not_known(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(cache_dir=tmp_path)
    timings.remember(settings, plan_of(80), "tiny", STAGES)
    assert timings.expected_seconds(settings, plan_of(80), "large") is None
    assert timings.expected_seconds(settings, plan_of(80, width=32), "tiny") is None
    assert timings.expected_seconds(settings, replace(plan_of(80), fps=30), "tiny") is None


@pytest.mark.parametrize("content", ["", "[]", '{"a": "b"}', "{", "\0"])
def test_a_damaged_file_is_forgotten(
    make_settings: MakeSettings, tmp_path: Path, content: str
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    settings = make_settings(cache_dir=cache)
    (cache / "timings.json").write_text(content)
    assert timings.expected_seconds(settings, plan_of(80), "tiny") is None
    timings.remember(settings, plan_of(80), "tiny", STAGES)
    assert timings.expected_seconds(settings, plan_of(80), "tiny") == pytest.approx(10)
    assert [path.name for path in cache.iterdir()] == ["timings.json"]


def test_a_folder_that_cannot_be_written_fails_no_job(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    settings = make_settings(cache_dir=tmp_path / "file" / "cache")
    timings.remember(settings, plan_of(80), "tiny", STAGES)
    assert timings.expected_seconds(settings, plan_of(80), "tiny") is None
