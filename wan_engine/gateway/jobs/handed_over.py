"""Counts the jobs that a backend has accepted but not started.

The queue of a backend serves jobs in the order of their arrival, not in the fair order of keys. So
the backend gets only as many jobs as it will start soon, and the others wait in the gateway. Runpod
adds a worker when requests wait for four seconds, or exceed four per worker (docs.runpod.io,
serverless/endpoints, endpoint settings: queue delay and request count), so its queue must
contain more than three for each running one.
"""

from __future__ import annotations

import asyncio

_LEAST = 4
_EACH = 3
_ARRIVE_SECONDS = 60.0  # a job that has not arrived by then is no longer counted


class HandedOver:
    """The jobs that a backend has accepted but not started: at most four, plus three for each
    running one."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.TimerHandle] = {}
        self._begun: set[str] = set()
        self._room = asyncio.Event()
        self._room.set()

    async def room(self) -> None:
        """Wait until the backend may get one more job."""
        await self._room.wait()

    def handed(self, job_id: str) -> None:
        """Count a job that is being sent to the backend."""
        timer = asyncio.get_running_loop().call_later(_ARRIVE_SECONDS, self._lost, job_id)
        self._waiting[job_id] = timer
        self._look()

    def arrived(self, job_id: str) -> None:
        """Count a job that now waits in the backend's own queue."""
        if (timer := self._waiting.get(job_id)) is not None:
            timer.cancel()

    def begun(self, job_id: str) -> None:
        """Count a job whose work has begun."""
        self._lost(job_id)
        self._begun.add(job_id)
        self._look()

    def over(self, job_id: str) -> None:
        """Stop counting a job."""
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
