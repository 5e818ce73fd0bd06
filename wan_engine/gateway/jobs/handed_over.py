"""Counts the jobs that a backend has accepted but not started.

A queue elsewhere is first come, first served: what is in it is no longer in anybody's turn. So it
gets as much as it works off soon, and the rest waits here. Runpod adds a worker when requests wait
for four seconds or are more than four a worker (docs.runpod.io, serverless/endpoints, endpoint
settings: queue delay and request count), so it must see more than three for each that is at work.
"""

from __future__ import annotations

import asyncio

_LEAST = 4
_EACH = 3
_ARRIVE_SECONDS = 60.0  # a job that has not arrived by then counts no longer


class HandedOver:
    """Jobs that a backend has and has not begun: at most four, and three for each one at work."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.TimerHandle] = {}
        self._begun: set[str] = set()
        self._room = asyncio.Event()
        self._room.set()

    async def room(self) -> None:
        """Return when one more may be handed over."""
        await self._room.wait()

    def handed(self, job_id: str) -> None:
        """It is on its way to the backend."""
        timer = asyncio.get_running_loop().call_later(_ARRIVE_SECONDS, self._lost, job_id)
        self._waiting[job_id] = timer
        self._look()

    def arrived(self, job_id: str) -> None:
        """It waits in the backend's own queue now, for as long as that takes."""
        if (timer := self._waiting.get(job_id)) is not None:
            timer.cancel()

    def begun(self, job_id: str) -> None:
        """Its work has begun."""
        self._lost(job_id)
        self._begun.add(job_id)
        self._look()

    def over(self, job_id: str) -> None:
        """It is neither waiting nor at work any longer."""
        self._begun.discard(job_id)
        self._lost(job_id)

    def _lost(self, job_id: str) -> None:
        if (timer := self._waiting.pop(job_id, None)) is not None:
            timer.cancel()
        self._look()

    def _look(self) -> None:
        if len(self._waiting) < _LEAST + _EACH * len(self._begun):
            self._room.set()
        else:
            self._room.clear()
