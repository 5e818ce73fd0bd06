"""Prints a plan as a table: the facts, then one row per shot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wan_engine.schema import Lora

if TYPE_CHECKING:
    from rich.table import Table

_SOUNDS = {"given": "yours", "made": "made by {}", "silent": "a silent track", "none": "no track"}


def tables(found: Mapping[str, Any]) -> tuple[Table, Table]:
    """The result of `plan.described` as two tables."""
    from rich.table import Table
    from rich.text import Text

    width, height = found["size"]
    rendered = "x".join(str(side) for side in found["rendered"])
    facts = Table("", "", show_header=False, show_edge=False)
    facts.add_row(
        "model", f"{found['model']}, {found['steps']} steps, continued by {found['continuation']}"
    )
    facts.add_row("why", f"{found['task']}: {found['reason']}")
    if later := found.get("later_shots"):
        facts.add_row("later shots", f"{later['model']}: {later['reason']}")
    if found["loras"]:
        facts.add_row("LoRA", Text(", ".join(str(Lora(**one)) for one in found["loras"])))
    sound = _SOUNDS[found["sound"]].format(found["sound_model"])
    facts.add_row("sound", f"{sound}: {found['sound_reason']}")
    for sentence in found["undone"]:
        facts.add_row("not done", Text(sentence))
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
