"""Holds all jobs of this gateway: one state machine for every door, in the database and in memory.

An accepted job is stored. Active jobs and recently ended jobs are in memory as well, so that a
status needs no query. This module does not depend on the backend (`dispatch.py`) or on the state
names of an API.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from wan_engine.control import Preview, Progress
from wan_engine.gateway.job import (
    RETRYABLE,
    Job,
    NewJob,
    State,
    accepted,
    now_ms,
    queued_again,
)
from wan_engine.gateway.jobs.counts import Counts
from wan_engine.gateway.jobs.events import Events
from wan_engine.gateway.jobs.fair_queue import FairQueue, Full
from wan_engine.gateway.jobs.kept_requests import Requests
from wan_engine.gateway.jobs.latest_previews import Previews
from wan_engine.gateway.jobs.request_parts import split
from wan_engine.gateway.jobs.run_times import RunTimes
from wan_engine.gateway.jobs.store import Store
from wan_engine.gateway.metrics import Metrics
from wan_engine.gateway.refusals import Refusal
from wan_engine.gateway.uncancelled import uncancelled

log = logging.getLogger(__name__)

REPLAY_SECONDS = 60
"""How long after its end a job is still reported to a new subscriber."""

_QUEUED: tuple[State, ...] = ("queued",)
_RUNNING: tuple[State, ...] = ("running",)
_UNFINISHED = _QUEUED + _RUNNING
_RECENT = 10_000  # ended jobs in memory; the others are read from the database
_LIST_LIMIT = 1000
_PAGE = 50
_LONGEST_RETRY_AFTER_SECONDS = 600
_FIRST_RUN_SECONDS = 30.0  # a guess, until a job has run
_COUNTED_BEFORE = 1000  # the largest number of jobs counted before a waiting one
_FULL: dict[Full, str] = {
    "queue": "The queue is full",
    "share": "This key has its limit of waiting jobs",
}


class Jobs:
    """The jobs. Open them with `start`. `owner` is the name of a caller's key. No owner sees
    another owner's jobs.

    Every call raises `Refusal` "unavailable" while the database is unavailable.
    """

    def __init__(
        self, store: Store, requests: Requests, metrics: Metrics, queue: FairQueue
    ) -> None:
        self._store = store
        self._requests = requests
        self._metrics = metrics
        self._live: dict[str, Job] = {}
        self._recent: OrderedDict[str, Job] = OrderedDict()
        self._queue = queue
        self._queued = asyncio.Event()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._events = Events()
        self._counts = Counts()
        self._at_work: dict[str, str | None] = {}  # the workers of running jobs
        self._stops: dict[str, Callable[[], object]] = {}
        self._run_seconds = _FIRST_RUN_SECONDS
        self.run_times = RunTimes()
        self._previews = Previews()
        metrics.queue_length(lambda: len(self._queue))

    async def start(self) -> None:
        """Read the jobs that an earlier gateway left, and queue the running ones again."""
        for *group, state, count, retries in await self._store.counts():
            self._counts.stored(tuple(group), state, count, retries)
        for job in await self._store.ended_since(now_ms() - REPLAY_SECONDS * 1000):
            self._remember(job)
        for job in await self._store.unfinished():
            self._live[job.id] = job
            if job.state == "running":
                await self._move(job.id, _RUNNING, queued_again)
            self._enqueue(job, first=job.state == "running" or job.remote_id is not None)
        if self._queue:
            log.info("%d jobs of the last run continue", len(self._queue))

    def close(self) -> None:
        """End every wait for a job's end and for events."""
        self._events.close()

    @property
    def closed(self) -> bool:
        """Whether the gateway is ending, so that callers should not wait."""
        return self._events.closed

    # --- for doors -------------------------------------------------------------------------------

    async def submit(self, *new: NewJob) -> tuple[Job, ...]:
        """Store jobs, all or none. Once this returns, they will be finished or fail.

        A job with a wrong request is stored as failed. Raises `Refusal` "queue_full".
        """
        return await uncancelled(self._submit(new))

    async def find(self, door: str, owner: str, job_id: str) -> Job | None:
        """Find a job of this owner that came through this door."""
        job = await self.get(job_id)
        return job if job and (job.door, job.owner) == (door, owner) else None

    async def get(self, job_id: str) -> Job | None:
        """Return any job, for code that does not answer a caller."""
        if job := self._live.get(job_id) or self._recent.get(job_id):
            return job
        if len(job_id) > 64 or not job_id.isascii() or not job_id.isprintable():
            return None
        return await self._store.find(job_id)

    async def request(self, job_id: str) -> dict[str, Any]:
        """Return the door's `NewJob.request`, or the parts of it that are kept. It may be
        megabytes."""
        return await self._requests.shown(job_id)

    async def cut_request(self, job_id: str) -> tuple[dict[str, Any], bool]:
        """Return the request with long texts cut to their beginnings, which is kept as long as the
        job, and whether `whole_request` returns it uncut."""
        return await self._requests.row(job_id)

    async def whole_request(self, job_id: str) -> dict[str, Any] | None:
        """Return the request, or None if a part of it is no longer kept."""
        return await self._requests.whole_request(job_id)

    async def of_owner(
        self,
        door: str,
        owner: str,
        *,
        states: Collection[State] | None = None,
        model: str | None = None,
    ) -> AsyncGenerator[list[Job]]:
        """Yield the newest thousand jobs in pages, newest first, with their state in memory."""
        last: Job | None = None
        for _ in range(_LIST_LIMIT // _PAGE):
            stored = await self._store.of_owner(door, owner, states, model, _PAGE, last)
            newest = [self._live.get(job.id) or self._recent.get(job.id) or job for job in stored]
            yield [job for job in newest if states is None or job.state in states]
            if len(stored) < _PAGE:
                return
            last = stored[-1]

    def waiting(self, door: str, owner: str, model: str) -> list[Job]:
        """Return all queued jobs of this owner."""
        wanted = (door, owner, model)
        live = (job for job in self._live.values() if job.state == "queued")
        return [job for job in live if (job.door, job.owner, job.model) == wanted]

    def workers(self) -> int:
        """The number of running jobs, for all doors and owners."""
        return len(set(self._at_work.values()))

    def before(self, job: Job) -> int | None:
        """The number of jobs, of all owners, that will begin before this one. None if it is not
        waiting."""
        if job.state != "queued":
            return None
        before = self._queue.before(job.id, _COUNTED_BEFORE)
        if before is None:
            return 0  # taken, but its backend has not begun
        taken = len(self._live) - len(self._queue) - len(self._at_work)
        return len(before) + max(0, taken)

    def seconds_left(self, job: Job) -> float | None:
        """Expected seconds to the end of a queued or running job. None without earlier jobs to
        estimate from."""
        its_own = self._own_left(job)
        if its_own is None:
            return None
        running = [self._live[job_id] for job_id in self._at_work if job_id != job.id]
        if job.state == "running":
            first = [one for one in running if (one.started_ms or 0) < (job.started_ms or 0)]
        else:
            before = self._queue.before(job.id, _COUNTED_BEFORE) or ()
            first = [*running, *(self._live[job_id] for job_id in before)]
        others = sum(self._own_left(one) or 0.0 for one in first)
        workers = max(1, self.workers())
        if job.state == "running" and workers > 1:
            return its_own  # it has a worker for itself
        return others / workers + its_own

    def _own_left(self, job: Job) -> float | None:
        if job.state != "running":
            return self.run_times.expected_seconds(job.kind)
        seconds = (now_ms() - (job.started_ms or now_ms())) / 1000
        return self.run_times.left(job.kind, job.progress, seconds)

    def preview(self, job: Job, known: int) -> Preview | None:
        """Return the newest preview of a running job, unless its step is `known`. After each call,
        previews are made for some seconds."""
        return None if job.id not in self._live else self._previews.look(job.id, known)

    async def cancel(self, job: Job) -> Job:
        """Cancel the job. Returns the job, unchanged if it had already ended."""
        return await self._end(job, "cancelled")

    async def remove(self, *jobs: Job) -> None:
        """Delete jobs that have ended, with their requests. Jobs that are already gone are
        skipped."""
        assert all(job.final for job in jobs), "they have to be cancelled first"
        await uncancelled(self._remove(jobs))

    async def retry(self, job: Job) -> Job:
        """Queue the job again with a new time limit. Raises `Refusal` "conflict" if it has not
        failed or its request is no longer kept, and "queue_full"."""

        def again(job: Job) -> Job:
            now = now_ms()
            expires = now + round(job.ttl_seconds * 1000)
            job = replace(queued_again(job), queued_ms=now, expires_ms=expires)
            return replace(job, workers_lost=0, retries=job.retries + 1)

        if job.state in RETRYABLE and not await self._requests.is_all_kept(job.id):
            raise Refusal("conflict", "The job's request is no longer stored: send it again")
        with self._room(job.owner, 1):
            moved = await self._move(job.id, RETRYABLE, again)
            if moved is None:
                raise Refusal("conflict", "Only a job that failed or timed out can be retried")
            self._enqueue(moved)
        return moved

    async def wait(self, job: Job, seconds: float) -> Job:
        """Wait until the job has ended, for `seconds` at most, or until the gateway ends. Returns
        the job."""
        if not self._now(job).final:
            await self._events.ended(job.id, seconds)
        return self._now(job)

    def events(self, owner: str) -> AsyncGenerator[Job]:
        """Yield this owner's jobs at each change of state until the gateway ends, beginning with
        those that ended in the last minute. Raises `Refusal` "rate_limited" while too many streams
        of this owner are open."""
        if self._events.crowded(owner):
            raise Refusal("rate_limited", "Too many streams of events are open")
        since = now_ms() - REPLAY_SECONDS * 1000
        ended = [job for job in self._recent.values() if (job.finished_ms or 0) >= since]
        return self._events.of(owner, [job for job in ended if job.owner == owner])

    async def counts(
        self, door: str | None = None, owner: str | None = None, model: str | None = None
    ) -> tuple[dict[str, int], int]:
        """Return the number of jobs in each state, and the number of retries."""
        return self._counts.of(door, owner, model)

    def unfruitful(self) -> Mapping[str, int]:
        """Return the number of each owner's jobs that ended without a clip."""
        return self._counts.unfruitful()

    # --- for the backend --------------------------------------------------------------------------

    async def take(self) -> Job:
        """Take the next job. The caller must end it or give it back."""
        while not self._queue:
            self._queued.clear()
            await self._queued.wait()
        return self._live[self._queue.take()]

    async def claim(self, job_id: str, stop: Callable[[], object]) -> Job | None:
        """Claim the job for the backend. `stop` is called when the work must end. Returns None if
        the job has ended."""

        def claimed(job: Job) -> Job:
            self._stops[job.id] = stop
            return job

        return await self._move(job_id, _UNFINISHED, claimed, told=False)

    async def begin(self, job_id: str, worker: str | None = None) -> None:
        """Record that the work has begun."""

        def begun(job: Job) -> Job:
            return replace(
                job, state="running", started_ms=now_ms(), worker=(worker or "")[:64] or None
            )

        await self._move(job_id, _QUEUED, begun)

    async def remote(self, job_id: str, remote_id: str | None) -> None:
        """Keep the id of the job in the backend's own queue, to follow it after a restart."""

        def known(job: Job) -> Job:
            return replace(job, remote_id=remote_id)

        await self._move(job_id, _UNFINISHED, known, told=False)

    def progress(self, job_id: str, progress: Progress) -> None:
        if (job := self._live.get(job_id)) is not None and job.state == "running":
            self._live[job_id] = replace(job, progress=progress)

    def wants_preview(self, job_id: str) -> bool:
        return self._previews.wanted(job_id)

    def put_preview(self, job_id: str, preview: Preview) -> None:
        if (job := self._live.get(job_id)) is not None and job.state == "running":
            self._previews.put(job_id, preview)

    async def complete(
        self, job: Job, result: Mapping[str, Any], stage_seconds: Mapping[str, float]
    ) -> Job:
        ended = await self._end(job, "completed", result=dict(result))
        if ended.state == "completed" and (took := ended.execution_ms) is not None:
            self.run_times.learn(job.kind, stage_seconds, took / 1000)
        return ended

    async def fail(self, job: Job, code: str, error: str) -> Job:
        return await self._end(job, "failed", error=error, error_code=code)

    async def expire(self, job: Job) -> Job:
        """End a job whose time to live is over, including its time in the queue."""
        error = "The job's time to live is over"
        return await self._end(job, "expired", error=error, error_code="deadline_exceeded")

    async def give_back(self, job_id: str, *, count: bool) -> None:
        """Put the job at the front of the queue, because its worker is gone. `count` the lost
        worker if the job had the device, so that a job that ends its workers does not run forever.
        Do not count it if this gateway ended."""

        def again(job: Job) -> Job:
            return replace(queued_again(job), workers_lost=job.workers_lost + count)

        if (moved := await self._move(job_id, _UNFINISHED, again)) is not None:
            self._stops.pop(job_id, None)
            self._enqueue(moved, first=True)

    def expired(self) -> list[Job]:
        """Return the active jobs whose time is over."""
        now = now_ms()
        return [job for job in self._live.values() if job.expires_ms <= now]

    # --- changes ---------------------------------------------------------------------------------

    def _now(self, job: Job) -> Job:
        return self._live.get(job.id) or self._recent.get(job.id) or job

    async def _remove(self, jobs: Collection[Job]) -> None:
        # Each is subtracted once, even if several callers remove it at the same time.
        removed = await self._store.remove([job.id for job in jobs])
        for job in jobs:
            if job.id in removed:
                self._recent.pop(job.id, None)
                self._counts.gone(job)

    async def _submit(self, new: Collection[NewJob]) -> tuple[Job, ...]:
        parts = [await split(one.request) for one in new]
        made = [
            (accepted(replace(one, request=its.shown)), its)
            for one, its in zip(new, parts, strict=True)
        ]
        waiting = [job for job, _ in made if not job.final]
        with self._room(waiting[0].owner, len(waiting)) if waiting else nullcontext():
            await self._requests.add(made[0][0].owner, made)
            for job, _ in made:
                self._metrics.accepted(job)
                self._counts.come(job)
                self._changed(job)
                if not job.final:
                    self._enqueue(job)
        return tuple(job for job, _ in made)

    @contextmanager
    def _room(self, owner: str, count: int) -> Iterator[None]:
        """Reserve places in the queue for `count` jobs while they are being stored. Raises
        `Refusal`."""
        full = self._queue.reserve(owner, count)
        if full is not None:
            seconds = min(_LONGEST_RETRY_AFTER_SECONDS, max(1, round(self._run_seconds)))
            raise Refusal("queue_full", f"{_FULL[full]}, try again later", seconds)
        try:
            yield
        finally:
            self._queue.release(owner, count)

    async def _end(self, job: Job, state: State, **found: Any) -> Job:
        def ended(job: Job) -> Job:
            return replace(job, state=state, finished_ms=now_ms(), progress=None, **found)

        moved = await self._move(job.id, _UNFINISHED, ended)
        if moved is None:
            return await self.get(job.id) or job
        # The sentence may quote the caller, so it is not logged.
        how = f"{state} ({moved.error_code})" if moved.error_code else state
        log.info("job %s (%s, %s) %s", moved.id, moved.door, moved.owner, how)
        if state == "completed" and (took := moved.execution_ms) is not None:
            self._run_seconds += (took / 1000 - self._run_seconds) / 5
        stop = self._stops.pop(job.id, None)
        if stop is not None and state in ("cancelled", "expired"):
            stop()
        return moved

    async def _move(
        self,
        job_id: str,
        before: Collection[State],
        change: Callable[[Job], Job],
        *,
        told: bool = True,
    ) -> Job | None:
        """Apply `change` to the job and store it. Returns None if the job is in none of the states
        `before`."""
        return await uncancelled(self._locked_move(job_id, before, change, told))

    async def _locked_move(
        self, job_id: str, before: Collection[State], change: Callable[[Job], Job], told: bool
    ) -> Job | None:
        async with self._locks.setdefault(job_id, asyncio.Lock()):
            job = await self.get(job_id)
            if job is None or job.state not in before:
                return None
            moved = change(job)
            if not await self._store.change(moved, before):
                return None
            self._counts.gone(job)
            self._counts.come(moved)
            self._changed(moved, told=told)
            return moved

    def _enqueue(self, job: Job, *, first: bool = False) -> None:
        (self._queue.put_back if first else self._queue.put)(job.id, job.owner)
        self._queued.set()

    def _changed(self, job: Job, *, told: bool = True) -> None:
        if job.state != "running":
            self._previews.forget(job.id)
        if job.final:
            self._live.pop(job.id, None)
            self._queue.drop(job.id)
            self._remember(job)
            self._metrics.ended(job)
        else:
            self._recent.pop(job.id, None)
            self._live[job.id] = job
        if job.state == "running":
            self._at_work[job.id] = job.worker
        else:
            self._at_work.pop(job.id, None)
        if told:
            self._events.tell(job)

    def _remember(self, job: Job) -> None:
        self._recent[job.id] = job
        while len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
