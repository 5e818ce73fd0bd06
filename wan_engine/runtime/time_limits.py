"""Sets how long a render may go without progress, and how long it may take if you set no limit.

The limits are far above the time of any render, so only a render that hangs reaches them.
"""

from __future__ import annotations

from wan_engine.catalog import ModelSpec
from wan_engine.control import Control
from wan_engine.runtime import estimates
from wan_engine.runtime.recipes import Recipe
from wan_engine.schema import Plan
from wan_engine.settings import Settings

_COMPILING_TIMES = 3  # a step may compile kernels for another shape
_LAYERED_TIMES = 12  # a step copies 28 GB over a slow bus
_ON_A_CPU_TIMES = 48  # 27,000 tokens through 5e9 weights take an hour at 100 GFLOP/s
_LARGE_GB = 1.0  # of weights: smaller models are quick anywhere
_FIRST_SEGMENT_TIMES = 24  # with 300 s: two hours for five seconds, before a clip was measured
_JOB_TIMES = 10  # of the time that the last clip of its kind took
_SHORTEST_JOB_TIMES = 6  # with 300 s: half an hour


def set_limits(
    control: Control, plan: Plan, settings: Settings, spec: ModelSpec, recipe: Recipe, how: str
) -> None:
    """Set how long a step of `plan` may go without progress, and a deadline if the job has none.
    `how` as in `estimates`."""
    expected_seconds = estimates.expected_seconds(settings, plan, how)
    step_seconds = settings.hang_seconds * slowness(spec, recipe)
    control.step_seconds = max(step_seconds, expected_seconds or 0)
    if expected_seconds is None:
        job_seconds = control.step_seconds * _FIRST_SEGMENT_TIMES * len(plan.segments)
    else:
        shortest = settings.hang_seconds * _SHORTEST_JOB_TIMES
        job_seconds = max(shortest, expected_seconds * _JOB_TIMES)
    control.limit(round(job_seconds))


def allow_steps(control: Control, settings: Settings, spec: ModelSpec, recipe: Recipe) -> None:
    """Let a step of another model of the job go without progress for as long as its recipe may
    take."""
    seconds = settings.hang_seconds * slowness(spec, recipe)
    control.step_seconds = max(control.step_seconds, seconds)


def slowness(spec: ModelSpec, recipe: Recipe) -> int:
    """How many times longer a step may take than on a model that stays on a GPU."""
    if recipe.device == "cpu":
        return _ON_A_CPU_TIMES if spec.download_gb >= _LARGE_GB else 1
    if recipe.offload == "layer":
        return _LAYERED_TIMES
    return _COMPILING_TIMES if recipe.compiled else 1
