"""One stage of a training: steps until a budget is spent, with lines and checkpoints on the way."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

_WARM_UP_STEPS = 60
_COLLAPSE = 2.5  # times the best loss
_ENOUGH = 24  # losses of one kind: fewer are as far apart by chance
_FIRST_DECAY = 0.5  # of the budget: constant until here, then down to nearly nothing


class Stage(Protocol):
    """What is trained. `step` gets the progress (0 to 1) and gives named losses, on the device."""

    name: str
    optimizer: torch.optim.Optimizer

    def step(self, progress: float) -> dict[str, torch.Tensor]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Budget:
    """`steps`, or `seconds` of this machine. With steps a run can be repeated."""

    steps: int | None = None
    seconds: float | None = None

    def progress(self, steps: int, seconds: float) -> float:
        if self.steps is not None:
            return min(1.0, steps / max(1, self.steps))
        assert self.seconds is not None
        return min(1.0, seconds / max(1e-9, self.seconds))


@dataclass
class Position:
    """How far a stage is."""

    steps: int = 0
    seconds: float = 0.0
    done: bool = False


def learning_rate_factor(steps: int, progress: float) -> float:
    """Warm-up, a plateau, and a cosine down to 1 %: what is kept at the end needs no average."""
    warm = min(1.0, (steps + 1) / _WARM_UP_STEPS)
    if progress <= _FIRST_DECAY:
        return warm
    fall = (progress - _FIRST_DECAY) / (1 - _FIRST_DECAY)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall)))


class Log:
    """Lines for a reader on stderr (and in a file), JSON lines with `as_json`."""

    def __init__(self, path: Path | None, write: Callable[[str], None], *, as_json: bool) -> None:
        self._path, self._write, self._as_json = path, write, as_json

    def __call__(self, event: str, **values: Any) -> None:
        if self._as_json:
            line = json.dumps({"event": event, **values})
        else:
            line = " ".join([f"{event:12}", *(f"{key}={_short(v)}" for key, v in values.items())])
        self._write(line)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(line + "\n")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Guard:
    """Takes a stage back to where it was well, at half the rate, when it has collapsed."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._best: dict[str, float] = {}
        self._gathered: dict[str, tuple[float, int]] = {}
        self._well: dict[str, Any] | None = None
        self._before: dict[str, Any] | None = None

    def check(
        self, losses: dict[str, float], counts: dict[str, int], rates: list[float], log: Log
    ) -> None:
        """Compare the means of windows with the best ones so far; `rates` are halved in place.

        `losses` are means of `counts` each; they are put together until they are `_ENOUGH`.
        """
        losses = self._gather(losses, counts)
        if not losses:
            return
        collapsed = [
            name
            for name, value in losses.items()
            if math.isnan(value) or value > _COLLAPSE * self._best.get(name, math.inf)
        ]
        if collapsed and self._before is not None:
            self._stage.load_state_dict(copy.deepcopy(self._before))
            rates[:] = [rate / 2 for rate in rates]
            log("collapsed", of=collapsed[0], loss=losses[collapsed[0]], rate=rates[0])
            return
        for name, value in losses.items():
            self._best[name] = min(value, self._best.get(name, math.inf))
        # Two windows back: the latest may already be on its way down.
        self._before, self._well = self._well, copy.deepcopy(self._stage.state_dict())

    def _gather(self, losses: dict[str, float], counts: dict[str, int]) -> dict[str, float]:
        """Means of the kinds of loss of which enough have come."""
        enough = {}
        for name, value in losses.items():
            if not name.endswith("loss"):
                continue
            total, count = self._gathered.pop(name, (0.0, 0))
            total, count = total + value * counts[name], count + counts[name]
            if count >= _ENOUGH or math.isnan(value):
                enough[name] = total / count
            else:
                self._gathered[name] = total, count
        return enough


def run_stage(
    stage: Stage,
    budget: Budget,
    position: Position,
    log: Log,
    *,
    save: Callable[[], None],
    log_seconds: float = 4.0,
    save_seconds: float = 30.0,
) -> None:
    """Take steps until `budget` is spent. `save` is called every `save_seconds`."""
    rates = [group["lr"] for group in stage.optimizer.param_groups]
    started = logged = saved = time.perf_counter()
    before = position.seconds
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    since, guard = 0, Guard(stage)
    while (progress := budget.progress(position.steps, position.seconds)) < 1.0:
        factor = learning_rate_factor(position.steps, progress)
        for group, rate in zip(stage.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        for name, value in stage.step(progress).items():
            sums[name] = sums.get(name, 0) + value.detach()
            counts[name] = counts.get(name, 0) + 1
        position.steps += 1
        since += 1
        if torch.cuda.is_available() and position.steps % 8 == 0:
            torch.cuda.synchronize()
        now = time.perf_counter()
        position.seconds = before + now - started
        if now - logged >= log_seconds:
            means = {name: float(total) / counts[name] for name, total in sums.items()}
            pace = since / (now - logged)
            log(stage.name, step=position.steps, progress=progress, **means, steps_a_second=pace)
            guard.check(means, counts, rates, log)
            sums, counts, since, logged = {}, {}, 0, time.perf_counter()
        if now - saved >= save_seconds:
            save()
            saved = time.perf_counter()
    for group, rate in zip(stage.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    log(f"{stage.name} done", steps=position.steps, seconds=position.seconds)
