"""A plan as scripts read it: what would be rendered, in numbers."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from wan_engine.catalog import ModelSpec
from wan_engine.schema import Plan, Shot


def outline(
    plan: Plan, spec: ModelSpec, *, made_by: str, seconds: float | None, price: Decimal
) -> dict[str, Any]:
    """The JSON of `python -m wan_engine plan --json`. `seconds` is what rendering should take here,
    None when that is not known; `price` is the `cost` of the result, in USD."""
    shots, start = [], 0
    for shot in plan.shots:
        shots.append(_shot(shot, start / plan.fps, plan.fps))
        start += shot.frames
    return {
        "model": spec.name,
        "size": [plan.width, plan.height],
        "rendered": [plan.render_width, plan.render_height],
        "seconds": plan.frames / plan.fps,
        "frames": plan.frames,
        "fps": plan.fps,
        "source_frames": plan.source_frames,
        "source_fps": plan.source_fps,
        "made_by": made_by,
        "steps": spec.steps * len(plan.segments),
        "continuation": spec.continuation,
        "seed": plan.seed,
        "cut_seconds": list(plan.cut_seconds),
        "shots": shots,
        "expected_seconds": None if seconds is None else round(seconds, 1),
        "cost": float(price),
    }


def _shot(shot: Shot, start: float, fps: int) -> dict[str, Any]:
    return {
        "start": start,
        "seconds": shot.frames / fps,
        "prompt": shot.prompt,
        "crop": [round(side, 3) for side in shot.crop],
        "segments": [
            {
                "seed": segment.seed,
                "sampled": segment.frames,
                "repeated": segment.skip,
                "shown": segment.keep,
            }
            for segment in shot.segments
        ],
    }
