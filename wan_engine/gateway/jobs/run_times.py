"""Records how long jobs took, to estimate the remaining time of a job.

It uses only the jobs that ended in this process. Until a first job has ended, there are no
estimates.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from wan_engine.control import Progress

_KINDS = 200
_WAITING = "queue"  # the stage in which a job waits for another
_NOT_ITS_OWN = (_WAITING, "load")  # later jobs do not load again
_LINE = ("prepare", "expand", "safety", "denoise", "decode", "encode", "sound", "publish")


class RunTimes:
    """Seconds by stage of the last job of each kind (`job.kind_of`)."""

    def __init__(self) -> None:
        self._stages: OrderedDict[str, dict[str, float]] = OrderedDict()
        self._last: dict[str, float] = {}

    def learn(self, kind: str | None, stage_seconds: Mapping[str, float], seconds: float) -> None:
        """Record a job that took `seconds`. `stage_seconds` is empty if unknown."""
        stages = {name: took for name, took in stage_seconds.items() if name not in _NOT_ITS_OWN}
        self._last = stages or {"": seconds}
        if kind is not None:
            self._stages[kind] = self._last
            self._stages.move_to_end(kind)
            while len(self._stages) > _KINDS:
                self._stages.popitem(last=False)

    def known(self) -> dict[str, float]:
        """Seconds by kind, for the known kinds."""
        return {kind: sum(stages.values()) for kind, stages in self._stages.items()}

    def expected_seconds(self, kind: str | None) -> float | None:
        """Expected seconds of a job: those of the last job of its kind, otherwise of any kind. None
        before the first."""
        stages = self._of(kind)
        return sum(stages.values()) if stages else None

    def left(self, kind: str | None, progress: Progress | None, seconds: float) -> float | None:
        """Expected remaining seconds of a job that has run for `seconds`. None before the first job
        has ended."""
        stages = self._of(kind)
        if not stages:
            return None
        if progress is not None and progress.stage == _WAITING:
            place = _LINE.index("denoise")
            return sum(took for name, took in stages.items() if name in _LINE[place:])
        if progress is None or progress.stage not in stages or progress.stage not in _LINE:
            return max(0.0, sum(stages.values()) - seconds)
        share = min(1.0, progress.step / progress.steps) if progress.steps else 0.0
        place = _LINE.index(progress.stage)
        left = sum(took for name, took in stages.items() if name in _LINE[place + 1 :])
        left += stages[progress.stage] * (1 - share)
        if progress.stage == "decode":  # the decoded part is rendered already, and the rest is not
            left += stages.get("denoise", 0.0) * (1 - share)
        return left

    def _of(self, kind: str | None) -> Mapping[str, float]:
        return self._stages.get(kind or "", self._last)
