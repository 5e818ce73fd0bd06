"""Counts the jobs of each door, owner and model by state, so that no request waits for a count in
the database."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from wan_engine.gateway.job import FINAL, Job, State

_Group = tuple[str, str, str]


class Counts:
    def __init__(self) -> None:
        self._states: defaultdict[_Group, Counter[State]] = defaultdict(Counter)
        self._retries: Counter[_Group] = Counter()

    def stored(self, group: _Group, state: State, count: int, retries: int) -> None:
        """Add the database's count of a group: door, owner, model."""
        self._states[group][state] += count
        self._retries[group] += retries

    def come(self, job: Job) -> None:
        """Count a job in its present state."""
        self.stored(_group(job), job.state, 1, job.retries)

    def gone(self, job: Job) -> None:
        """Stop counting a job in its present state."""
        self.stored(_group(job), job.state, -1, -job.retries)

    def of(
        self, door: str | None, owner: str | None, model: str | None
    ) -> tuple[dict[str, int], int]:
        """The number of jobs by state, and the number of retries. None matches everything."""
        found: Counter[str] = Counter()
        retries = 0
        for group in self._of(door, owner, model):
            found.update(self._states[group])
            retries += self._retries[group]
        return {state: count for state, count in found.items() if count}, retries

    def unfruitful(self) -> Counter[str]:
        """The number of jobs of each owner that ended without a clip."""
        found: Counter[str] = Counter()
        for (_, owner, _), states in self._states.items():
            found[owner] += sum(states[state] for state in FINAL if state != "completed")
        return found

    def _of(self, *wanted: str | None) -> Iterator[_Group]:
        for group in self._states:
            if all(one in (None, its) for one, its in zip(wanted, group, strict=True)):
                yield group


def _group(job: Job) -> _Group:
    return job.door, job.owner, job.model
