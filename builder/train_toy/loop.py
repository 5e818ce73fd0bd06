"""Runs one stage of the training: a number of steps, with occasional lines of progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch

_WARM_UP_STEPS = 60
_FIRST_DECAY = 0.5  # part of the steps: constant until here, then decaying to nearly zero
_TELL_STEPS = 20


class Stage(Protocol):
    """A part of the training. `step` takes the progress (0 to 1) and returns named losses, on the
    device."""

    name: str
    optimizer: torch.optim.Optimizer

    def step(self, progress: float) -> dict[str, torch.Tensor]: ...


def learning_rate_factor(step: int, progress: float) -> float:
    """Warm-up, a plateau, and a cosine down to 1 %, so that the final weights need no averaging."""
    warm = min(1.0, (step + 1) / _WARM_UP_STEPS)
    if progress <= _FIRST_DECAY:
        return warm
    fall = (progress - _FIRST_DECAY) / (1 - _FIRST_DECAY)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall)))


def run_stage(stage: Stage, steps: int, tell: Callable[[str], None]) -> None:
    """Run `steps` steps, and report the mean of each loss since the previous line."""
    rates = [group["lr"] for group in stage.optimizer.param_groups]
    losses: dict[str, list[float]] = {}
    for step in range(steps):
        progress = step / steps
        factor = learning_rate_factor(step, progress)
        for group, rate in zip(stage.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        for name, value in stage.step(progress).items():
            losses.setdefault(name, []).append(float(value.detach()))
        if (step + 1) % _TELL_STEPS == 0 or step + 1 == steps:
            means = (f"{name} {sum(all_) / len(all_):.4g}" for name, all_ in losses.items())
            tell(f"{stage.name} {step + 1} of {steps}: {', '.join(means)}")
            losses = {}
