"""How long clips took on this machine, so that a plan can say what the next one will take.

One number for each kind of work: seconds for a frame that the model samples. It is a guess from the
last clip of the kind, and absent before the first.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from wan_engine.schema import Plan
from wan_engine.settings import Settings

log = logging.getLogger(__name__)

_FILE = "timings.json"
_OUTSIDE = ("prepare", "expand", "safety", "queue", "load", "publish")
"""Stages that do not grow with the clip."""


def remember(settings: Settings, plan: Plan, how: str, stage_seconds: Mapping[str, float]) -> None:
    """Note what a clip took. `how` is whatever else decides: model, recipe, steps. Never fails."""
    seconds = sum(took for stage, took in stage_seconds.items() if stage not in _OUTSIDE)
    path = _path(settings)
    half = path.with_name(f".{uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        half.write_text(json.dumps({**_read(path), _key(plan, how): seconds / _sampled(plan)}))
        half.replace(path)
    except OSError as error:
        log.debug("timings not kept in %s: %s", path, error)


def expected_seconds(settings: Settings, plan: Plan, how: str) -> float | None:
    """Seconds that rendering `plan` should take; None when no clip of its kind was made here."""
    each = _read(_path(settings)).get(_key(plan, how))
    return None if each is None else each * _sampled(plan)


def _path(settings: Settings) -> Path:
    return settings.cache_dir.expanduser() / _FILE


def _read(path: Path) -> dict[str, float]:
    try:
        found = json.loads(path.read_text())
        return {str(key): float(value) for key, value in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _key(plan: Plan, how: str) -> str:
    rendered = f"{plan.render_width}x{plan.render_height}"
    return f"{how}, {rendered} to {plan.width}x{plan.height} at {plan.fps} fps"


def _sampled(plan: Plan) -> int:
    return sum(segment.frames for segment in plan.segments)
