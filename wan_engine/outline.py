"""A plan as scripts and as people read it: what would be rendered, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from wan_engine.catalog import ModelSpec
from wan_engine.schema import Plan, Shot

if TYPE_CHECKING:
    from rich.table import Table


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


def tables(found: Mapping[str, Any]) -> tuple[Table, Table]:
    """What `outline` gives as people read it: the facts, and a row for each shot."""
    from rich.table import Table
    from rich.text import Text

    width, height = found["size"]
    rendered = "x".join(str(side) for side in found["rendered"])
    facts = Table("", "", show_header=False, show_edge=False)
    facts.add_row(
        "model", f"{found['model']}, {found['steps']} steps, goes on by {found['continuation']}"
    )
    facts.add_row(
        "clip",
        f"{width}x{height}, {found['seconds']:g} s, {found['frames']} frames at {found['fps']} fps",
    )
    how = f" ({found['made_by']})" if found["made_by"] else ""
    facts.add_row(
        "rendered", f"{rendered}, {found['source_frames']} frames at {found['source_fps']} fps{how}"
    )
    took = found["expected_seconds"]
    facts.add_row(
        "expected",
        "not known before the first clip of this kind" if took is None else f"{took:g} s",
    )
    facts.add_row("cost", f"${found['cost']:.2f}, seed {found['seed']}")
    table = Table(
        "from", "to", "part of the image", "segments (sampled, repeated, shown)", "prompt"
    )
    for shot in found["shots"]:
        segments = "\n".join(
            f"{one['sampled']:>3} {one['repeated']:>2} {one['shown']:>3}  seed {one['seed']}"
            for one in shot["segments"]
        )
        left, top, right, bottom = (f"{side:.0%}" for side in shot["crop"])
        part = "whole" if shot["crop"] == [0, 0, 1, 1] else f"{left}-{right} x {top}-{bottom}"
        end = shot["start"] + shot["seconds"]
        table.add_row(f"{shot['start']:g} s", f"{end:g} s", part, segments, Text(shot["prompt"]))
    return facts, table


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
