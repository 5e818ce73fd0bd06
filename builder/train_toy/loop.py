"""Runs one stage of the training: a number of steps, with a line of progress now and then."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch

_WARM_UP_STEPS = 60
_FIRST_DECAY = 0.5  # of the steps: constant until here, then down to nearly nothing
_TELL_STEPS = 20


class Stage(Protocol):
    """What is trained. `step` gets the progress (0 to 1) and gives named losses, on the device."""

    name: str
    optimizer: torch.optim.Optimizer

    def step(self, progress: float) -> dict[str, torch.Tensor]: ...


def learning_rate_factor(step: int, progress: float) -> float:
    """Warm-up, a plateau, and a cosine down to 1 %: what is kept at the end needs no average."""
    warm = min(1.0, (step + 1) / _WARM_UP_STEPS)
    if progress <= _FIRST_DECAY:
        return warm
    fall = (progress - _FIRST_DECAY) / (1 - _FIRST_DECAY)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall)))


def run_stage(stage: Stage, steps: int, tell: Callable[[str], None]) -> None:
    """Take `steps` steps, and tell the mean of each loss since the line before."""
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
