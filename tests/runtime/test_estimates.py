"""The expected time of a clip, from the time of the last one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wan_engine import Control, Settings, VideoRequest
from wan_engine.errors import TimeLimitTooShort
from wan_engine.runtime import estimates
from wan_engine.schema import Plan, Segment, Shot

MakeSettings = Callable[..., Settings]
STAGES = {"prepare": 50.0, "load": 90.0, "denoise": 6.0, "decode": 3.0, "encode": 1.0}


def plan_of(*sampled: int, width: int = 64) -> Plan:
    segments = tuple(Segment(1, frames, 0, frames) for frames in sampled)
    frames = sum(sampled)
    return Plan(64, 64, width, 64, 64, 64, 16, frames, 1, (Shot("", segments, frames),), 16)


def test_a_clip_takes_as_long_per_frame_as_the_last_one(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(cache_dir=tmp_path)
    assert estimates.expected_seconds(settings, plan_of(80), "tiny") is None
    estimates.remember(settings, plan_of(80), "tiny", STAGES)
    assert estimates.expected_seconds(settings, plan_of(80), "tiny") == pytest.approx(10)
    assert estimates.expected_seconds(settings, plan_of(80, 80), "tiny") == pytest.approx(20)


def test_another_kind_of_work_has_no_estimate(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(cache_dir=tmp_path)
    estimates.remember(settings, plan_of(80), "tiny", STAGES)
    assert estimates.expected_seconds(settings, plan_of(80), "large") is None
    assert estimates.expected_seconds(settings, plan_of(80, width=32), "tiny") is None
    assert estimates.expected_seconds(settings, replace(plan_of(80), fps=30), "tiny") is None


def test_another_shape_of_about_as_many_pixels_is_the_same_kind(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(cache_dir=tmp_path)
    wide = replace(plan_of(80), width=1280, height=720, render_width=1280, render_height=720)
    tall = replace(wide, width=832, height=1108, render_width=832, render_height=1104)
    estimates.remember(settings, wide, "tiny", STAGES)
    assert estimates.expected_seconds(settings, tall, "tiny") == pytest.approx(10)


def refused(settings: Settings, plan: Plan, limit: float | None, **fields: Any) -> str | None:
    """The sentence of the refusal, or None."""
    request = VideoRequest(prompt="x", image="data:,", **fields)
    control = Control(deadline_seconds=limit)
    try:
        estimates.refuse_if_too_long(settings, request, plan, "tiny", control)
    except TimeLimitTooShort as error:
        return str(error)
    return None


def test_a_clip_that_cannot_finish_in_time_is_refused_with_the_figures(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(cache_dir=tmp_path)
    assert refused(settings, plan_of(80), 1) is None  # the first of its kind
    estimates.remember(settings, plan_of(80), "tiny", STAGES)
    assert refused(settings, plan_of(80), 5) == (
        "The clip should take about 10 s here, and the job has 5 s: it needs a longer time limit"
    )
    assert refused(settings, plan_of(80, 80, 80), 20, size="1920*1080", duration=15) == (
        "The clip should take about 30 s here, and the job has 20 s: "
        "a shorter duration or the smaller size takes less"
    )
    assert refused(settings, plan_of(80, width=32), 1) is None  # another kind
    assert refused(settings, plan_of(80), None) is None


@pytest.mark.parametrize("limit", [8.5, 10, 100])
def test_an_estimate_may_be_a_little_too_high(
    make_settings: MakeSettings, tmp_path: Path, limit: float
) -> None:
    settings = make_settings(cache_dir=tmp_path)
    estimates.remember(settings, plan_of(80), "tiny", STAGES)
    assert refused(settings, plan_of(80), limit) is None


def test_one_slow_clip_after_a_fast_one_refuses_nothing(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(cache_dir=tmp_path)
    for seconds in (10.0, 90.0):
        estimates.remember(settings, plan_of(80), "tiny", {"denoise": seconds})
    assert refused(settings, plan_of(80), 20) is None
    for _ in range(4):  # and the fast one is forgotten in the end
        estimates.remember(settings, plan_of(80), "tiny", {"denoise": 90.0})
    assert refused(settings, plan_of(80), 20) is not None


def test_refusals_stop_after_a_while_because_they_measure_nothing(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(cache_dir=tmp_path)
    estimates.remember(settings, plan_of(80), "tiny", STAGES)
    file = tmp_path / "timings.json"
    [(kind, [[each, at]])] = json.loads(file.read_text()).items()
    for hours, lets_through in ((20, False), (25, True)):
        file.write_text(json.dumps({kind: [[each, at - hours * 3600]]}))
        assert (refused(settings, plan_of(80), 5) is None) == lets_through
    assert estimates.expected_seconds(settings, plan_of(80), "tiny") == pytest.approx(10)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"a": "b"}', '{"a": 0.1}', '{"a": [[1]]}', "{", "\0"]
)
def test_a_damaged_file_is_discarded(
    make_settings: MakeSettings, tmp_path: Path, content: str
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    settings = make_settings(cache_dir=cache)
    (cache / "timings.json").write_text(content)
    assert estimates.expected_seconds(settings, plan_of(80), "tiny") is None
    estimates.remember(settings, plan_of(80), "tiny", STAGES)
    assert estimates.expected_seconds(settings, plan_of(80), "tiny") == pytest.approx(10)
    assert [path.name for path in cache.iterdir()] == ["timings.json"]


def test_a_folder_that_cannot_be_written_fails_no_job(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    settings = make_settings(cache_dir=tmp_path / "file" / "cache")
    estimates.remember(settings, plan_of(80), "tiny", STAGES)
    assert estimates.expected_seconds(settings, plan_of(80), "tiny") is None


def test_a_file_that_cannot_be_replaced_leaves_no_partial_file(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    (folder / "timings.json").mkdir(parents=True)
    estimates.remember(make_settings(cache_dir=folder), plan_of(80), "tiny", STAGES)
    assert [path.name for path in folder.iterdir()] == ["timings.json"]
