"""Clips of every whole second from 2 to 15 have exactly their frames, with every model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest

from wan_engine import toy
from wan_engine.catalog import CATALOG, ModelSpec
from wan_engine.plan import PlanLimits, make_plan
from wan_engine.prompts import template
from wan_engine.prompts.task import Task
from wan_engine.schema import SECONDS, Media, Order, Script

ROWS = [*CATALOG.values(), *toy.MODELS.values()]


@dataclass(frozen=True)
class Picture:
    """The attributes of an image that a plan reads."""

    size: tuple[int, int] = (1280, 720)


@pytest.mark.parametrize("seconds", SECONDS)
@pytest.mark.parametrize("spec", ROWS, ids=lambda spec: spec.name)
def test_every_whole_second_is_exact(spec: ModelSpec, seconds: int) -> None:
    order = Order("Leaves sway", image="https://example.com/a.jpg", duration=seconds, seed=42)
    media = Media(cast(Any, Picture()))
    for multi in (False, True):
        script = Script(template.expand(Task(order.prompt, seconds, multi)))
        for fps in (None, 30):
            plan = make_plan(order, script, media, spec, PlanLimits("image", fps))
            assert plan.frames == seconds * plan.fps
            assert plan.fps == (fps or spec.fps)
