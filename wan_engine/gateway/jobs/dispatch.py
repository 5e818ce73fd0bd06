"""Runs queued jobs on the backend, and stores their results. Each job runs until it has ended, even
if a worker or the gateway dies.

`_dispatch` takes the next job. `_run` claims it, lets the backend do its `Work`, and stores the
result.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, ParamSpec, TypeVar

from wan_engine.errors import EngineError, InvalidRequest, JobRefused
from wan_engine.gateway.backends.base import Backend, Done, Work, WorkerLost, WorkFailed
from wan_engine.gateway.job import Job
from wan_engine.gateway.jobs.handed_over import HandedOver
from wan_engine.gateway.jobs.service import Jobs
from wan_engine.gateway.metrics import Metrics
from wan_engine.gateway.refusals import Refusal
from wan_engine.schema import parse_request
from wan_engine.settings import Settings

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

_AGAIN_SECONDS = 2.0  # while the database is unavailable


class Dispatcher:
    def __init__(self, jobs: Jobs, backend: Backend, metrics: Metrics, settings: Settings) -> None:
        self._jobs = jobs
        self._backend = backend
        self._metrics = metrics
        self._settings = settings
        self._slots = asyncio.Semaphore(backend.slots)
        self._handed_over = HandedOver()
        self._runs: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None
        self._closing = False
        self._ours = asyncio.Event()
        self._ours.set()
        metrics.running(lambda: len(self._runs))

    def start(self) -> None:
        self._loop = asyncio.create_task(self._dispatch(), name="dispatch")
        self._loop.add_done_callback(_complain)

    def halt(self) -> None:
        """Stop all work at once and start nothing, because another gateway may own the jobs."""
        self._ours.clear()
        self._backend.abandon()
        for run in self._runs:
            run.cancel()

    def go_on(self) -> None:
        """Start again, because this gateway owns the jobs."""
        self._ours.set()

    async def close(self, seconds: float) -> None:
        """Stop taking jobs. Running jobs have `seconds` to end, then they go back to the queue."""
        self._closing = True
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])
        if self._runs and self._ours.is_set() and not self._backend.outlives:
            log.info("waiting for %d jobs, %g s at most", len(self._runs), seconds)
            await asyncio.wait(self._runs, timeout=seconds)
        for run in self._runs:
            run.cancel()
        if self._runs:
            await asyncio.wait(self._runs)

    async def _dispatch(self) -> None:
        while True:
            await self._slots.acquire()
            await self._handed_over.room()
            job = await self._jobs.take()
            if job.remote_id is None:  # otherwise the backend has it already
                self._handed_over.handed(job.id)
            run = asyncio.create_task(self._run(job), name=f"job {job.id}")
            self._runs.add(run)
            run.add_done_callback(partial(self._free, job.id))

    def _free(self, job_id: str, run: asyncio.Task[None]) -> None:
        self._runs.discard(run)
        self._handed_over.over(job_id)
        self._slots.release()
        if not run.cancelled() and (error := run.exception()) is not None:
            log.error("a run ended with an unexpected error", exc_info=error)

    async def _run(self, job: Job) -> None:
        run = asyncio.current_task()
        assert run is not None
        await self._ours.wait()
        claimed = await _stored(self._jobs.claim, job.id, run.cancel)
        if claimed is None:
            return
        try:
            done = await self._work(claimed)
        except WorkFailed as failure:
            await _stored(self._jobs.fail, claimed, failure.code, failure.sentence)
        except WorkerLost as lost:
            workers_lost = claimed.workers_lost + lost.blamed
            log.warning(
                "job %s lost its worker; it has crashed %d workers", claimed.id, workers_lost
            )
            if workers_lost >= self._settings.job_starts:
                refused = JobRefused(workers_lost)
                await _stored(self._jobs.fail, claimed, refused.code, str(refused))
            else:
                await _stored(self._jobs.give_back, claimed.id, count=lost.blamed)
        except asyncio.CancelledError:
            # The job was cancelled or has expired, which `Jobs` has stored. Or this gateway is
            # stopping, or has lost the ownership of its jobs.
            if not self._ours.is_set():
                await _stored(self._jobs.give_back, claimed.id, count=False)
            elif self._closing:
                with suppress(Refusal):  # the next gateway finds the job running, and queues it
                    await self._jobs.give_back(claimed.id, count=False)
        except Exception:
            reference = uuid.uuid4().hex[:8]
            log.exception("job %s failed, reference %s", claimed.id, reference)
            sentence = f"Internal error, reference {reference}"
            await _stored(self._jobs.fail, claimed, EngineError.code, sentence)
        else:
            self._metrics.stages(done.stage_seconds)
            await _stored(self._jobs.complete, claimed, done.output, done.stage_seconds)

    async def _work(self, job: Job) -> Done:
        async def begin(worker: str | None) -> None:
            self._handed_over.begun(job.id)
            await _stored(self._jobs.begin, job.id, worker)

        async def remote(remote_id: str | None) -> None:
            self._handed_over.arrived(job.id)
            await _stored(self._jobs.remote, job.id, remote_id)

        async def request() -> Mapping[str, Any]:
            found = await _stored(self._jobs.whole_request, job.id)
            if found is None:
                raise WorkFailed(EngineError.code, "The job's request is no longer stored")
            if job.retries:
                await _check(found)
            return found

        limits = [limit for limit in (job.run_seconds, self._settings.job_seconds) if limit]
        work = Work(
            job_id=job.id,
            task=job.task,
            render=f"{job.id}/{job.retries}.{job.workers_lost}",
            request=request,
            seconds=min(limits, default=None),
            remote_id=job.remote_id,
            begin=begin,
            progress=partial(self._jobs.progress, job.id),
            preview=partial(self._jobs.put_preview, job.id),
            wants_preview=partial(self._jobs.wants_preview, job.id),
            remote=remote,
            leaving=lambda: self._closing or not self._ours.is_set(),
        )
        return await self._backend.run(work)


async def _check(request: Mapping[str, Any]) -> None:
    """Raise `WorkFailed` for a wrong request. Such a job has failed at once, but may be retried
    like any other."""
    try:
        await asyncio.to_thread(parse_request, request)  # the request may contain pictures
    except InvalidRequest as error:
        raise WorkFailed(error.code, str(error)) from error


def _complain(loop: asyncio.Task[None]) -> None:
    if not loop.cancelled() and (error := loop.exception()) is not None:
        log.critical("no more jobs are started", exc_info=error)


async def _stored(change: Callable[P, Awaitable[T]], *arguments: P.args, **options: P.kwargs) -> T:
    """The result of `change`. Repeats it while the database is unavailable, so that no result is
    lost."""
    while True:
        try:
            return await change(*arguments, **options)
        except Refusal as refusal:
            log.warning("%s: trying again", refusal.message)
            await asyncio.sleep(_AGAIN_SECONDS)
