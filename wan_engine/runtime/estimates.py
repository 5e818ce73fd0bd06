"""Remembers how long clips took on this machine, so that a plan can show the expected time and a
job that cannot end in time is not started.

It keeps a few numbers for each kind of work: seconds per frame that the model samples. These are
guesses from the last clips of that kind; before the first there are none.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from wan_engine.catalog import ModelSpec
from wan_engine.control import Control
from wan_engine.errors import TimeLimitTooShort
from wan_engine.runtime import cores
from wan_engine.runtime.paths import beside
from wan_engine.runtime.recipes import Gpu, Recipe
from wan_engine.schema import Order, Plan
from wan_engine.settings import Settings

log = logging.getLogger(__name__)

_FILE = "timings.json"
_OUTSIDE = ("prepare", "expand", "safety", "queue", "load", "publish")
"""Stages whose time does not grow with the clip."""

_KEPT = 5  # number of clips to remember per kind
_FRESH_SECONDS = 24 * 3600.0
"""Clips older than this refuse no job. A refused job measures nothing, so without a limit one slow
hour of the machine would refuse jobs for ever."""

_SURELY = 0.8
"""A job is refused if even this share of its estimate exceeds the time that it has. The first clip
of a process may include compilation: 15 s beside 65 s on an H200, so the next clip takes 0.81 of
it."""


def kind_of_work(spec: ModelSpec, recipe: Recipe, gpu: Gpu | None, *made_by: str) -> str:
    """Everything besides the size that decides how long a frame takes: the `how` of the functions
    below. It includes the machine, because several machines may share one cache folder."""
    where = f"{gpu.name if gpu else 'no GPU'}, {cores.count()} cores"
    return f"{spec.name}, {spec.steps} steps, {recipe}, {', '.join((*made_by, where))}"


def remember(settings: Settings, plan: Plan, how: str, stage_seconds: Mapping[str, float]) -> None:
    """Record how long a clip took. `how` is `kind_of_work`. Never fails."""
    seconds = sum(took for stage, took in stage_seconds.items() if stage not in _OUTSIDE)
    path, kind = _path(settings), _kind(plan, how)
    clips = _read(path)
    clips[kind] = [*clips.get(kind, []), (seconds / _sampled(plan), time.time())][-_KEPT:]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside(path) as half:
            half.write_text(json.dumps(clips))
    except OSError as error:
        log.debug("timings not kept in %s: %s", path, error)


def expected_seconds(settings: Settings, plan: Plan, how: str) -> float | None:
    """Expected seconds for rendering `plan`, from the last clip of its kind. None if this machine
    has rendered none."""
    clips = _read(_path(settings)).get(_kind(plan, how), [])
    return clips[-1][0] * _sampled(plan) if clips else None


def refuse_if_too_long(
    settings: Settings, order: Order, plan: Plan, how: str, control: Control
) -> None:
    """Raise `TimeLimitTooShort` if rendering `plan` would end after the job's deadline. The
    estimate is the fastest of the last clips of its kind, with a margin."""
    left = control.seconds_left
    if left is None:
        return
    since = time.time() - _FRESH_SECONDS
    clips = _read(_path(settings)).get(_kind(plan, how), [])
    seconds = min((each for each, at in clips if at > since), default=0.0) * _sampled(plan)
    if seconds * _SURELY > left > 0:
        raise TimeLimitTooShort(seconds, left, _what_takes_less(order))


def _what_takes_less(order: Order) -> tuple[str, ...]:
    shorter = ("a shorter duration",) if order.duration > 5 else ()
    return (*shorter, "the smaller size") if order.size == "1920*1080" else shorter


def _path(settings: Settings) -> Path:
    return settings.cache_dir.expanduser() / _FILE


def _read(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Seconds per sampled frame and the time of each in seconds since 1970, by kind, oldest
    first."""
    try:
        found = json.loads(path.read_text())
        return {
            str(kind): [(float(each), float(at)) for each, at in clips]
            for kind, clips in found.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _kind(plan: Plan, how: str) -> str:
    """The key of a kind. Different aspect ratios have about the same number of pixels and take as
    long."""
    rendered, shown = plan.render_width * plan.render_height, plan.width * plan.height
    return f"{how}, {rendered:.2g} to {shown:.2g} pixels at {plan.fps} fps"


def _sampled(plan: Plan) -> int:
    return sum(segment.frames for segment in plan.segments)
