"""Repairs the worker loop of Runpod's SDK (runpod 1.12). Call `install` before
`runpod.serverless.start`.

As it is, it
- polls without a pause while the job API is away, and logs a line each time;
- forgets a stop that arrives before its job, and then renders the job;
- runs no job that arrives on its last poll while it ends;
- gives a result up after three tries, or at once when the connection breaks;
- goes on taking jobs in a process in which none can work;
- leaves its ping process behind when it is killed, which tells Runpod that the worker lives.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from wan_engine.runtime.faults import BROKEN_EXIT

log = logging.getLogger(__name__)

_LEAVE_SECONDS = 120.0  # for the results, and for clips that are being stored; then it ends anyhow

_RESULT_ATTEMPTS = 6  # with waits of 2, 3, 5, 8 and 13 seconds between them
_RESULT_WAIT_SECONDS = 15

_LONGEST_WAIT_SECONDS = 30.0
_BUSY, _BUSY_SECONDS = 429, 5.0  # as the SDK waits after it
_QUICK_SECONDS = 0.5  # a poll that brings nothing is held by Runpod for longer
_KEPT_SECONDS = 300.0  # a stop whose job has not come; a job that has ended
_MOST_KEPT = 10_000


class Ending:
    """Whether this process takes no further job, and why. Safe to use from several threads."""

    def __init__(self) -> None:
        self.why: str | None = None
        self._lock = threading.Lock()
        self._begun = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self, why: str) -> None:
        """Let the jobs that were taken end, post their results, and end the process; after two
        minutes even if they have not. Only the first call counts."""
        with self._lock:
            if self.why is not None:
                return
            self.why = why
        log.critical("this worker ends: %s", why)
        timer = threading.Timer(_LEAVE_SECONDS, end_process)
        timer.daemon = True
        timer.start()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._begun.set)

    async def wait(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self.why is None:
            await self._begun.wait()


def end_process() -> None:
    """End this process and its ping process at once, whatever their threads do."""
    for child in multiprocessing.active_children():
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(BROKEN_EXIT)


def install(ending: Ending) -> None:
    """Mend `runpod.serverless.start`. Call it after `import runpod`."""
    from runpod.serverless.modules import rp_scale

    _keep_results()
    _mend_pings()
    rp_scale.JobScaler = type("Loop", (_Loop, rp_scale.JobScaler), {"ending": ending})


def _keep_results() -> None:
    """Make the SDK post a result again after a broken connection too, and more than three times."""
    from aiohttp import ClientConnectionError, ClientPayloadError
    from aiohttp_retry import FibonacciRetry
    from runpod.serverless.modules import rp_http

    options: dict[str, Any] = {
        "attempts": _RESULT_ATTEMPTS,
        # Not ClientResponseError: what the server refuses, it refuses again.
        "exceptions": {ClientConnectionError, ClientPayloadError, OSError, TimeoutError},
        "max_timeout": _RESULT_WAIT_SECONDS,
    }
    rp_http.FibonacciRetry = lambda **_: FibonacciRetry(**options)


# --- the API away --------------------------------------------------------------------------------


class Outage:
    """Logs one line when something stops answering, and one when everything answers again."""

    def __init__(self) -> None:
        self._away: set[str] = set()
        self._since = 0.0

    def begun(self, what: str, error: Exception) -> None:
        if not self._away:
            self._since = time.monotonic()
            # Not its own text, which has the URL.
            why = getattr(error, "status", None) or getattr(error, "os_error", None)
            named = type(error).__name__ if why is None else f"{type(error).__name__}, {why}"
            log.warning("Runpod does not answer (%s: %s): it is asked again", what, named)
        self._away.add(what)

    def over(self, what: str) -> None:
        if what not in self._away:
            return
        self._away.remove(what)
        if not self._away:
            log.warning("Runpod answers again, after %.0f s", time.monotonic() - self._since)


class Patient:
    """A poll of the SDK that never raises, and waits longer after each failure, until `ends`."""

    def __init__(
        self,
        what: str,
        ask: Callable[..., Awaitable[Any]],
        outage: Outage,
        ends: asyncio.Event,
    ) -> None:
        self._what, self._ask, self._outage, self._ends = what, ask, outage, ends
        self._failures = 0

    async def __call__(self, *arguments: Any) -> Any:
        begun = time.monotonic()
        try:
            found = await self._ask(*arguments)
        except Exception as error:
            log.debug("the poll for %s failed", self._what, exc_info=True)
            self._outage.begun(self._what, error)
            self._failures += 1
            longest = min(_LONGEST_WAIT_SECONDS, 2.0 ** min(self._failures - 1, 10))
            least = _BUSY_SECONDS if getattr(error, "status", None) == _BUSY else 0.0
            await self._pause(max(least, longest * random.uniform(0.75, 1)))
            return []
        self._failures = 0
        self._outage.over(self._what)
        if not found and time.monotonic() - begun < _QUICK_SECONDS:
            await self._pause(_QUICK_SECONDS)  # or it would ask thousands of times a second
        return found

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._ends.wait(), seconds)
        except TimeoutError:
            return


def _mend_pings() -> None:
    """Make the SDK's ping process end with the worker, and log as little as the other polls."""
    import requests
    from runpod.serverless.modules import rp_ping

    worker, outage = os.getpid(), Outage()  # the process is forked, and so has its own of these

    def send(heartbeat: Any) -> None:
        if os.getpid() != worker:
            logging.getLogger("urllib3").setLevel(logging.ERROR)  # a line for each of its retries
            if os.getppid() != worker:
                os._exit(0)
        mirror = heartbeat._mirror
        about = {
            "job_id": mirror.get() if mirror is not None else None,
            "runpod_version": rp_ping.runpod_version,
        }
        seconds = heartbeat.PING_INTERVAL * 2
        try:
            heartbeat._session.get(heartbeat.PING_URL, params=about, timeout=seconds)
        except requests.RequestException as error:
            outage.begun("pings", error)
        else:
            outage.over("pings")

    rp_ping.Heartbeat._send_ping = send


# --- the loop ------------------------------------------------------------------------------------


class Recent:
    """Ids of the last minutes."""

    def __init__(self) -> None:
        self._ids: dict[str, float] = {}

    def add(self, job_id: str) -> None:
        oldest = time.monotonic() - _KEPT_SECONDS
        fresh = {each: at for each, at in self._ids.items() if at > oldest and each != job_id}
        self._ids = dict(list(fresh.items())[1 - _MOST_KEPT :])
        self._ids[job_id] = time.monotonic()

    def __contains__(self, job_id: str) -> bool:
        return time.monotonic() - self._ids.get(job_id, -_KEPT_SECONDS) < _KEPT_SECONDS

    def take(self, job_id: str) -> bool:
        """Whether it is there. Afterwards it is not."""
        found = job_id in self
        self._ids.pop(job_id, None)
        return found


_Sdk: Any = object  # the SDK's `JobScaler` comes behind it, in the class that `install` makes


class _Loop(_Sdk):  # type: ignore[misc]
    ending: Ending
    jobs_fetcher: Any
    stop_signals_fetcher: Any

    def __init__(self, config: dict[str, Any]) -> None:
        from runpod.serverless.modules import rp_job

        super().__init__(config)
        self._polled = asyncio.Event()
        self._begun: set[str] = set()
        self._ended, self._stopped_early = Recent(), Recent()
        outage, ends = Outage(), self._shutdown_event
        self.jobs_fetcher = Patient("jobs", self.jobs_fetcher, outage, ends)
        if rp_job._job_stop_url() is not None:  # else the SDK says that it is missing
            stops = self.stop_signals_fetcher
            self.stop_signals_fetcher = Patient("stops", stops, outage, ends)

    async def get_jobs(self, session: Any) -> None:
        """Poll for jobs. In a process that must end, leave the poll at once: what it would bring
        belongs to another worker."""
        try:
            await _first(super().get_jobs(session), self.ending.wait())
        finally:
            self.kill_worker()
            self._polled.set()

    async def run_jobs(self, session: Any) -> None:
        await super().run_jobs(session)  # until it is to end and the queue is empty
        await self._polled.wait()
        await super().run_jobs(session)  # what the last poll brought
        if self.ending.why is not None:
            end_process()

    async def handle_job(self, session: Any, job: dict[str, Any]) -> None:
        job_id = job["id"]
        if self._stopped_early.take(job_id):
            log.info("job %s was stopped before it came", job_id)
            self._leave(job)
        elif self.ending.why is not None:
            await self._refuse(session, job)
            self._leave(job)
        else:
            self._begun.add(job_id)
            try:
                await super().handle_job(session, job)
            finally:
                self._begun.discard(job_id)
                self._ended.add(job_id)

    async def _refuse(self, session: Any, job: dict[str, Any]) -> None:
        from runpod.serverless.modules import rp_http

        sentence = f"{self.ending.why} before this job began: send it again"
        await rp_http.send_result(session, {"error": sentence, "stopPod": True}, job)

    def _leave(self, job: dict[str, Any]) -> None:
        """Do what the SDK does after a job."""
        self.jobs_queue.task_done()
        self.job_progress.remove(job)
        self.jobs_tasks.pop(job["id"], None)
        self._ended.add(job["id"])

    async def stop_job(self, job_id: str) -> bool:
        """Stop a job. One that has not begun is not cancelled, because the SDK would count it for
        ever; it ends when its turn comes."""
        if job_id in self._begun:
            stopped: bool = await super().stop_job(job_id)
            return stopped
        if job_id not in self._ended:
            self._stopped_early.add(job_id)
        return False


async def _first(*works: Coroutine[Any, Any, None]) -> None:
    """Wait until one of them has ended, and cancel the others. Raises what that one raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in done:
        task.result()
