"""Decides which job is next: each key has its own line of jobs, keys take turns, and each has
places in the queue.

Keys take turns in proportion to their weights (stride scheduling: Waldspurger and Weihl, 1995). So
a key with one job waits for one job of each other key, not for a hundred jobs of one key. Half of
the places are reserved for the keys, by weight. The other half, and all places if there is only one
key, are free for all. No operation takes longer when more jobs wait.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from typing import Literal

from wan_engine.gateway.keys import Share

_KEPT = 0.5
_NO_SHARE = Share()

Full = Literal["queue", "share"]


class FairQueue:
    """The ids of waiting jobs, at most `places` of them, not counting jobs that were put back.
    `shares` are those of all keys; other owners have no reserved places."""

    def __init__(self, places: int, shares: Mapping[str, Share]) -> None:
        self._shares = dict(shares)
        self._places = _Places(places, self._shares)
        self._owners: dict[str, str] = {}
        self._lines: dict[str, OrderedDict[str, None]] = {}
        self._returned: OrderedDict[str, None] = OrderedDict()
        self._turns: list[tuple[float, int, str]] = []
        self._valid: dict[str, tuple[float, int, str]] = {}
        self._next: dict[str, float] = {}
        self._now = 0.0
        self._count = itertools.count()

    def __len__(self) -> int:
        return len(self._owners)

    def reserve(self, owner: str, count: int) -> Full | None:
        """Reserve places for `count` jobs. If there are none, returns what is full: the whole
        queue, or the part of one key."""
        return self._places.reserve(owner, count)

    def release(self, owner: str, count: int) -> None:
        """Release reserved places, because the jobs have arrived or will not."""
        self._places.add(owner, -count)

    def put(self, job_id: str, owner: str) -> None:
        """Add a job behind this owner's other jobs."""
        self._added(job_id, owner)
        if owner not in self._lines:
            self._lines[owner] = OrderedDict()
            # An owner without waiting jobs saves no turns.
            self._wait_for(owner, max(self._now, self._next.get(owner, 0.0)))
        self._lines[owner][job_id] = None

    def put_back(self, job_id: str, owner: str) -> None:
        """Put a job before all others, because it has had its turn and lost its worker."""
        self._added(job_id, owner)
        self._returned[job_id] = None

    def take(self) -> str:
        """Take the next job. Raises `IndexError` if none waits."""
        if self._returned:
            job_id, _ = self._returned.popitem(last=False)
            self._places.add(self._owners.pop(job_id), -1)
            return job_id
        while True:
            turn = heapq.heappop(self._turns)
            if self._valid.get(turn[2]) is turn:
                break
        self._now, _, owner = turn
        line = self._lines[owner]
        job_id, _ = line.popitem(last=False)
        self._places.add(self._owners.pop(job_id), -1)
        self._next[owner] = self._now + 1 / self._shares.get(owner, _NO_SHARE).weight
        if line:
            self._wait_for(owner, self._next[owner])
        else:
            self._leave(owner)
        return job_id

    def before(self, job_id: str, most: int) -> list[str] | None:
        """The jobs that would be taken before this one if no more came, next first, at most `most`.
        None if it is not waiting."""
        if job_id not in self._owners:
            return None
        found: list[str] = []
        for one in self._order():
            if one == job_id or len(found) == most:
                break
            found.append(one)
        return found

    def _order(self) -> Iterator[str]:
        """All jobs in the order in which `take` would return them."""
        yield from self._returned
        turns = list(self._valid.values())
        heapq.heapify(turns)
        lines = {owner: iter(line) for owner, line in self._lines.items()}
        while turns:
            turn, count, owner = heapq.heappop(turns)
            if (job_id := next(lines[owner], None)) is None:
                continue
            yield job_id
            later = turn + 1 / self._shares.get(owner, _NO_SHARE).weight
            # An owner that returns waits behind those that are already waiting.
            heapq.heappush(turns, (later, count + len(self._owners) + 1, owner))

    def drop(self, job_id: str) -> None:
        """Remove a job, if it is waiting."""
        owner = self._owners.pop(job_id, None)
        if owner is None:
            return
        self._places.add(owner, -1)
        if job_id in self._returned:
            del self._returned[job_id]
            return
        del self._lines[owner][job_id]
        if not self._lines[owner]:
            self._leave(owner)

    def _added(self, job_id: str, owner: str) -> None:
        self.drop(job_id)
        self._owners[job_id] = owner
        self._places.add(owner, 1)

    def _wait_for(self, owner: str, turn: float) -> None:
        # Of two owners with the same turn, the one that has waited longer.
        self._valid[owner] = entry = (turn, next(self._count), owner)
        heapq.heappush(self._turns, entry)

    def _leave(self, owner: str) -> None:
        del self._lines[owner], self._valid[owner]


class _Places:
    def __init__(self, places: int, shares: Mapping[str, Share]) -> None:
        weights = sum(share.weight for share in shares.values())
        self._most = {name: share.most for name, share in shares.items() if share.most is not None}
        self._kept = {
            name: min(int(places * _KEPT * share.weight / weights), share.most or places)
            for name, share in shares.items()
        }
        self._common = places - sum(self._kept.values())
        self._taken: Counter[str] = Counter()
        self._common_taken = 0

    def reserve(self, owner: str, count: int) -> Full | None:
        waiting = self._taken[owner] + count
        if waiting > self._most.get(owner, waiting):
            return "share"
        more = self._beyond(owner, waiting) - self._beyond(owner, self._taken[owner])
        if more > 0 and self._common_taken + more > self._common:
            return "share" if owner in self._kept and len(self._kept) > 1 else "queue"
        self.add(owner, count)
        return None

    def add(self, owner: str, count: int) -> None:
        before = self._taken[owner]
        self._taken[owner] += count
        self._common_taken += self._beyond(owner, before + count) - self._beyond(owner, before)
        if not self._taken[owner]:
            del self._taken[owner]

    def _beyond(self, owner: str, count: int) -> int:
        """How many of `count` jobs exceed the reserved places of this owner."""
        return max(0, count - self._kept.get(owner, 0))
