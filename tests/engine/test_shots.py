"""Expanded prompts, the shots made from them, and the negative prompt."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.engine.clips import (
    FEWEST,
    SMALLEST,
    LongRun,
    MakeSettings,
    OrderFor,
    RequestFor,
    SlidingPicture,
    clip_frames,
    local,
    visible,
)
from wan_engine import Control, Engine, data_uri
from wan_engine.media.framing import subject
from wan_engine.plan import PlanLimits, make_plan, punch_in
from wan_engine.schema import Media, Script, ScriptShot


def test_the_model_gets_the_expanded_prompt_and_the_output_does_not_show_it(
    engine: Any, request_for: RequestFor
) -> None:
    family = engine.pool.main.family = LongRun(engine.spec)
    control = Control()
    result = engine.generate(request_for(enable_prompt_expansion=True), control)
    assert result.expanded_prompt.startswith("lift-off. ")
    assert [asked.prompt for asked in family.asked] == [result.expanded_prompt]
    assert result.expanded_prompt not in json.dumps(result.output())
    assert "expansion" not in json.dumps(result.output())
    assert control.stage_seconds["expand"] > 0
    assert engine.generate(request_for()).expanded_prompt == ""


def test_an_expansion_that_failed_is_a_warning(
    make_settings: MakeSettings, shortest: OrderFor
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    engine: Any = Engine(make_settings(**SMALLEST, prompt_url=url))
    engine.pool.main.spec = replace(engine.spec, **FEWEST)
    engine.pool.main.family = LongRun(engine.spec)
    result = engine.generate(shortest(enable_prompt_expansion=True))
    assert any("Prompt expansion failed" in warning for warning in result.output()["warnings"])
    assert result.expanded_prompt.startswith("lift-off. ")


@pytest.mark.parametrize("expanded", [False, True])
def test_several_shots_need_prompt_expansion(
    engine: Any, request_for: RequestFor, expanded: bool
) -> None:
    family = engine.pool.main.family = LongRun(engine.spec)
    engine.generate(request_for(shot_type="multi", enable_prompt_expansion=expanded))
    assert len(family.asked) == (2 if expanded else 1)
    assert (family.asked[0].prompt == "lift-off") is not expanded


@pytest.mark.system
def test_shots_of_a_real_model_are_cut_hard_at_the_planned_times(
    whole: Engine, request_for: RequestFor
) -> None:
    request = request_for(shot_type="multi", enable_prompt_expansion=True, duration=10)
    frames = clip_frames(local(whole.generate(request).video_url), 64, 36).astype(int)
    assert len(frames) == 160
    changes = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    # 4, 3 and 3 seconds at 16 fps. This model's texture changes most between shots, and least after
    # the first frame of a run.
    assert set(np.argsort(changes)[-2:] + 1) == {64, 112}
    assert set(np.argsort(changes)[:3]) == {0, 64, 112}


@pytest.mark.parametrize("name", ["rocket_640x360.jpg", "astronaut_360x480.png"])
def test_every_shot_starts_from_its_crop_of_the_image_unstretched(
    make_settings: MakeSettings, request_for: RequestFor, data: Path, name: str
) -> None:
    engine: Any = Engine(make_settings(preset="superfast"))
    engine.pool.main.spec = replace(engine.spec, **FEWEST)
    engine.pool.main.family = SlidingPicture()
    request = request_for(
        image=data_uri(data / name), shot_type="multi", enable_prompt_expansion=True, duration=15
    )
    result = engine.generate(request)
    original = Image.open(data / name).convert("RGB")
    frames = clip_frames(local(result.video_url), *original.size)
    starts = [frames[number].astype(float) for number in (0, 20, 40)]
    wholes = [original]
    for framing in ("closer", "detail"):
        left, top, right, bottom = punch_in(framing, subject(original))
        width, height = original.size
        box = (left * width, top * height, right * width, bottom * height)
        wholes.append(original.resize(original.size, Image.Resampling.BICUBIC, box=box))
    plan_of_one = make_plan(
        request, Script((ScriptShot("", 15),)), Media(original), engine.spec, PlanLimits()
    )
    errors = [
        [np.sqrt(((start - visible(whole, plan_of_one)) ** 2).mean()) for whole in wholes]
        for start in starts
    ]
    for number, row in enumerate(errors):
        assert row[number] < 22 and row[number] == min(row), errors


@pytest.mark.parametrize(
    ("mode", "asked", "used"),
    [
        ("add", None, "{own}"),
        ("add", "green", "green, {own}"),
        ("replace", None, "{own}"),
        ("replace", "green", "green"),
    ],
)
def test_the_callers_negative_prompt_is_added_or_replaces_the_models(
    make_settings: MakeSettings, shortest: OrderFor, mode: str, asked: str | None, used: str
) -> None:
    engine: Any = Engine(make_settings(negative_prompt=mode, preset="superfast"))
    family = engine.pool.main.family = LongRun(replace(engine.spec, max_area=32 * 32, **FEWEST))
    engine.pool.main.spec = family.spec
    result = engine.generate(shortest(negative_prompt=asked))
    own = engine.spec.negative_prompt
    assert {segment.negative_prompt for segment in family.asked} == {used.format(own=own)}
    # The four-step rows run without CFG, so a negative prompt has no effect.
    assert ("works without CFG" in " ".join(result.warnings)) == (asked is not None)


def test_with_cfg_a_negative_prompt_causes_no_warning(
    make_settings: MakeSettings, shortest: OrderFor
) -> None:
    engine: Any = Engine(make_settings(preset="superfast", guidance_scale=3))
    engine.pool.main.family = LongRun(replace(engine.spec, max_area=32 * 32, **FEWEST))
    engine.pool.main.spec = engine.pool.main.family.spec
    assert "CFG" not in " ".join(engine.generate(shortest(negative_prompt="x")).warnings)
