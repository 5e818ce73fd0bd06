"""Announces changes of jobs: to callers that wait for the end of a job, and to subscribers of an
owner's jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable

from wan_engine.gateway.job import Job

_SUBSCRIBER_EVENTS = 1000  # a subscriber that is further behind is disconnected
_SUBSCRIBERS_OF_OWNER = 100  # each may keep its connection open for any time


class Events:
    def __init__(self) -> None:
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._subscribers: dict[asyncio.Queue[Job | None], str] = {}
        self.closed = False

    def tell(self, job: Job) -> None:
        """Announce a change."""
        if job.final:
            _release(self._waiters.pop(job.id, ()))
        for events, owner in self._subscribers.items():
            if owner == job.owner:
                _put(events, job)

    def close(self) -> None:
        """Release all callers and subscribers."""
        self.closed = True
        for waiters in self._waiters.values():
            _release(waiters)
        for events in self._subscribers:
            _put(events, None)

    async def ended(self, job_id: str, seconds: float) -> None:
        """Wait until the job has ended, `seconds` have passed, or the gateway stops."""
        if self.closed or seconds <= 0:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(job_id, set()).add(waiter)
        try:
            await asyncio.wait([waiter], timeout=seconds)
        finally:
            waiter.cancel()
            waiters = self._waiters.get(job_id, set())
            waiters.discard(waiter)
            if not waiters:
                self._waiters.pop(job_id, None)

    def crowded(self, owner: str) -> bool:
        """Whether this owner has the largest allowed number of subscribers."""
        others = sum(one == owner for one in self._subscribers.values())
        return others >= _SUBSCRIBERS_OF_OWNER

    async def of(self, owner: str, before: Iterable[Job]) -> AsyncGenerator[Job]:
        """Yield `before`, then each job of this owner when it changes. Ends when the gateway stops
        or the reader is too far behind."""
        events: asyncio.Queue[Job | None] = asyncio.Queue(_SUBSCRIBER_EVENTS)
        for job in before:
            _put(events, job)
        if self.closed or self.crowded(owner):
            _put(events, None)
        self._subscribers[events] = owner
        try:
            while (job_or_end := await events.get()) is not None:
                yield job_or_end
        finally:
            self._subscribers.pop(events, None)


def _release(waiters: Iterable[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


def _put(events: asyncio.Queue[Job | None], job: Job | None) -> None:
    try:
        events.put_nowait(job)
    except asyncio.QueueFull:
        while not events.empty():
            events.get_nowait()
        events.put_nowait(None)
