"""Limits of the silence and the total time of a render."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from wan_engine.catalog import CATALOG, ModelSpec
from wan_engine.control import Control
from wan_engine.runtime import estimates
from wan_engine.runtime.recipes import Recipe
from wan_engine.runtime.time_limits import set_limits
from wan_engine.schema import Plan, Segment, Shot
from wan_engine.settings import Settings

TOY, LARGE = CATALOG["wan-tiny"], CATALOG["wan2.2-i2v-a14b"]
GPU = Recipe("cuda", "bfloat16")
HOUR = 3600.0


def plan(segments: int = 1) -> Plan:
    parts = tuple(Segment(seed, frames=81, repeated=0, shown=81) for seed in range(segments))
    return Plan(1280, 720, 1280, 720, 1280, 720, 16, 81, 1, (Shot("x", parts, 81),), 16)


@pytest.mark.parametrize(
    ("spec", "recipe", "step_seconds"),
    [
        (LARGE, GPU, 300),
        (LARGE, replace(GPU, offload="stream"), 300),
        (LARGE, replace(GPU, compiled=True), 900),
        (LARGE, replace(GPU, offload="layer"), HOUR),
        (LARGE, Recipe("cpu", "float32"), 4 * HOUR),
        (TOY, Recipe("cpu", "float32"), 300),
    ],
)
def test_slower_steps_have_a_higher_limit(
    make_settings: Callable[..., Settings], spec: ModelSpec, recipe: Recipe, step_seconds: float
) -> None:
    control = Control()
    set_limits(control, plan(), make_settings(cache_dir="/nowhere"), spec, recipe, "how")
    assert control.step_seconds == step_seconds
    assert control.seconds_left == pytest.approx(24 * step_seconds, abs=5)


def test_the_first_clip_of_a_kind_has_a_limit_for_each_segment(
    make_settings: Callable[..., Settings],
) -> None:
    control = Control()
    set_limits(control, plan(3), make_settings(cache_dir="/nowhere"), LARGE, GPU, "how")
    assert control.seconds_left == pytest.approx(6 * HOUR, abs=5)


@pytest.mark.parametrize(("took", "seconds"), [(20.0, 1800), (1000.0, 10_000)])
def test_a_clip_like_an_earlier_one_may_take_ten_times_as_long(
    make_settings: Callable[..., Settings], tmp_path: Path, took: float, seconds: float
) -> None:
    settings, control = make_settings(cache_dir=tmp_path), Control()
    estimates.remember(settings, plan(), "how", {"denoise": took})
    set_limits(control, plan(), settings, LARGE, GPU, "how")
    assert control.seconds_left == pytest.approx(seconds, abs=5)
    assert control.step_seconds == max(300, took)


def test_an_existing_deadline_stays(make_settings: Callable[..., Settings]) -> None:
    control = Control(deadline_seconds=60)
    set_limits(control, plan(), make_settings(), LARGE, GPU, "how")
    assert control.seconds_left == pytest.approx(60, abs=5)


def test_a_leaner_recipe_has_its_own_limits(make_settings: Callable[..., Settings]) -> None:
    control, settings = Control(), make_settings(cache_dir="/nowhere")
    set_limits(control, plan(), settings, LARGE, GPU, "how")
    set_limits(control, plan(), settings, LARGE, replace(GPU, offload="layer"), "how")
    assert control.step_seconds == HOUR
    assert control.seconds_left == pytest.approx(24 * HOUR, abs=5)
