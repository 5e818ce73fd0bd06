"""Repairs the worker loop of Runpod's SDK (runpod 1.12). Call `install` before
`runpod.serverless.start`.

The SDK's own loop

- polls without a pause while the job API is down, and logs a line each time;
- forgets a cancellation that arrives before its job, and then renders the job;
- does not run a job that arrives on its last poll while it ends;
- gives up posting a result after three tries, or at once when the connection breaks;
- keeps taking jobs in a process in which no job can work;
- leaves its ping process behind when it is killed, which tells Runpod that the worker is alive.
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

_LEAVE_SECONDS = 120.0  # time for results and uploads; the process ends after it in any case

_RESULT_ATTEMPTS = 6  # with waits of 2, 3, 5, 8 and 13 seconds between them
_RESULT_WAIT_SECONDS = 15

_LONGEST_WAIT_SECONDS = 30.0
_BUSY, _BUSY_SECONDS = 429, 5.0  # as the SDK waits after it
_QUICK_SECONDS = 0.5  # Runpod holds an empty poll for longer
_KEPT_SECONDS = 300.0  # a cancellation whose job has not arrived, or has ended
_MOST_KEPT = 10_000


class Ending:
    """Whether this process takes no more jobs, and why. Thread-safe."""

    def __init__(self) -> None:
        self.why: str | None = None
        self._lock = threading.Lock()
        self._begun = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self, why: str) -> None:
        """Let the running jobs end, post their results, and end the process, after two minutes at
        the latest. Only the first call counts."""
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
    """End this process and its ping process at once, whatever their threads are doing."""
    for child in multiprocessing.active_children():
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(BROKEN_EXIT)


def install(ending: Ending) -> None:
    """Patch `runpod.serverless.start`. Call it after `import runpod`."""
    from runpod.serverless.modules import rp_scale

    _keep_results()
    _mend_pings()
    rp_scale.JobScaler = type("Loop", (_Loop, rp_scale.JobScaler), {"ending": ending})


def _keep_results() -> None:
    """Make the SDK retry a result after a broken connection too, and more than three times."""
    from aiohttp import ClientConnectionError, ClientPayloadError
    from aiohttp_retry import FibonacciRetry
    from runpod.serverless.modules import rp_http

    options: dict[str, Any] = {
        "attempts": _RESULT_ATTEMPTS,
        # Not ClientResponseError: the server would refuse it again.
        "exceptions": {ClientConnectionError, ClientPayloadError, OSError, TimeoutError},
        "max_timeout": _RESULT_WAIT_SECONDS,
    }
    rp_http.FibonacciRetry = lambda **_: FibonacciRetry(**options)


# --- outages of the job API ----------------------------------------------------------------------


class Outage:
    """Logs one line when a server stops answering, and one when it answers again."""

    def __init__(self) -> None:
        self._away: set[str] = set()
        self._since = 0.0

    def begun(self, what: str, error: Exception) -> None:
        if not self._away:
            self._since = time.monotonic()
            # Not the error's own text, which contains the URL.
            why = getattr(error, "status", None) or getattr(error, "os_error", None)
            named = type(error).__name__ if why is None else f"{type(error).__name__}, {why}"
            log.warning("Runpod does not answer (%s: %s): retrying", what, named)
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
            # Without a pause it would poll thousands of times per second.
            await self._pause(_QUICK_SECONDS)
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

    worker, outage = os.getpid(), Outage()  # the forked process has its own copies of these

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
    """The ids of the last minutes."""

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
        """Whether the id is there. Removes it."""
        found = job_id in self
        self._ids.pop(job_id, None)
        return found


_Sdk: Any = object  # `install` makes a class with the SDK's `JobScaler` as the next base


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
        if rp_job._job_stop_url() is not None:  # otherwise the SDK logs that it is missing
            stops = self.stop_signals_fetcher
            self.stop_signals_fetcher = Patient("stops", stops, outage, ends)

    async def get_jobs(self, session: Any) -> None:
        """Poll for jobs. If the process must end, cancel the poll at once, because its job belongs
        to another worker."""
        try:
            await _first(super().get_jobs(session), self.ending.wait())
        finally:
            self.kill_worker()
            self._polled.set()

    async def run_jobs(self, session: Any) -> None:
        await super().run_jobs(session)  # until the process must end and the queue is empty
        await self._polled.wait()
        await super().run_jobs(session)  # jobs of the last poll
        if self.ending.why is not None:
            end_process()

    async def handle_job(self, session: Any, job: dict[str, Any]) -> None:
        job_id = job["id"]
        if self._stopped_early.take(job_id):
            log.info("job %s was cancelled before it arrived", job_id)
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
        """Do the SDK's work after a job."""
        self.jobs_queue.task_done()
        self.job_progress.remove(job)
        self.jobs_tasks.pop(job["id"], None)
        self._ended.add(job["id"])

    async def stop_job(self, job_id: str) -> bool:
        """Cancel a job. A job that has not started is not cancelled at once, because the SDK would
        count it for ever; it ends when its turn comes."""
        if job_id in self._begun:
            stopped: bool = await super().stop_job(job_id)
            return stopped
        if job_id not in self._ended:
            self._stopped_early.add(job_id)
        return False


async def _first(*works: Coroutine[Any, Any, None]) -> None:
    """Wait until one of the tasks ends, and cancel the others. Raises that task's error."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in done:
        task.result()
