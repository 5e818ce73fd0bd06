"""Renders with the engine in a child process. The gateway starts it again if it dies, so a broken
GPU context or a killed process costs one start of one job.

The two exchange lines of JSON over pipes (`engine_process.py` is the other end). The process ends
by itself when its pipe closes, so a killed gateway leaves none behind. It reports every few seconds
that it is alive, and watches the progress of its job itself. A silent process is killed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

from wan_engine.control import Preview, Progress
from wan_engine.gateway.backends.base import Done, Work, WorkerLost, WorkFailed
from wan_engine.gateway.metrics import Metrics
from wan_engine.runtime.watchdog import LOAD_TIMES
from wan_engine.schema import Input, Task
from wan_engine.settings import Settings
from wan_engine.storage import LocalStorage

log = logging.getLogger(__name__)

_LONGEST_LINE = 1 << 20
_OFF_DEVICE = ("prepare", "expand", "safety", "queue", "publish")
_AGAIN_SECONDS = (0.0, 1.0, 5.0, 15.0, 60.0)  # before the next start, longer after each failure
_GRACE_SECONDS = 60.0  # time of a job that must stop for its step, chunk or part of an upload
_EXIT_SECONDS = 10.0
_SILENT_SECONDS = 60.0  # longest silence; a start may be busy for as long as a load may take
_UNSURE_SECONDS = 15.0  # after this silence, it gets no job
_LOOK_SECONDS = 0.5
_WATCHED_SECONDS = 3.0  # between orders for previews, which hold for longer


class LocalBackend:
    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        on_fatal: Callable[[str], None] | None = None,
        *,
        command: tuple[str, ...] = ("-m", "wan_engine.gateway.backends.engine_process"),
    ) -> None:
        self.outlives = False
        self.models: Mapping[Task, str] | None = None
        self.takes: Mapping[Task, Collection[Input]] | None = None
        self.loras: Mapping[Task, Collection[str]] | None = {}
        self.slots = 2 if settings.prefetch else 1
        self._settings = settings
        self._metrics = metrics
        self._on_fatal = on_fatal
        self._command = command
        self._keeper: asyncio.Task[None] | None = None
        self._process: Process | None = None
        self._ready = asyncio.Event()
        self._works: dict[str, tuple[Work, asyncio.Future[Done]]] = {}
        self._failed_starts = 0
        self._why = "the engine is starting"
        self._silent_seconds = 0.0
        self._at_work: str | None = None  # the job that has the device, as last reported
        self._blamed: str | None = None  # the job that the process named as its reason to end
        self._watched: dict[str, float] = {}  # when previews of a job were ordered

    async def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep(), name="engine")

    def waiting_for(self) -> str | None:
        if not self._ready.is_set():
            return self._why
        if self._silent_seconds > min(_UNSURE_SECONDS, self._settings.hang_seconds / 2):
            return f"the engine has said nothing for {self._silent_seconds:.0f} s"
        return None

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper

    def abandon(self) -> None:
        self._kill()

    async def run(self, work: Work) -> Done:
        await self._ready.wait()
        await work.begin(None)  # if it is cancelled before this, there is no work to stop
        ended: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._works[work.job_id] = work, ended
        try:
            order = {"do": "run", "id": work.job_id, "request": await work.request()}
            await self._send({**order, "seconds": work.seconds})
            limit = None if work.seconds is None else work.seconds + _GRACE_SECONDS
            done, _ = await asyncio.wait([ended], timeout=limit)
            if not done:
                log.error("job %s did not end in time: its engine is killed", work.job_id)
                self._kill()
                raise WorkFailed("deadline_exceeded", "The job exceeded its time limit")
            return ended.result()
        except asyncio.CancelledError:
            if not work.leaving():  # else its process ends anyway
                await self._stop(work.job_id, ended)
            raise
        finally:
            del self._works[work.job_id]
            self._watched.pop(work.job_id, None)
            if ended.done() and not ended.cancelled():
                ended.exception()  # retrieve the exception, or asyncio complains

    async def _stop(self, job_id: str, ended: asyncio.Future[Done]) -> None:
        """Stop the work at its next step, or kill its process if it does not stop."""
        with suppress(WorkerLost):
            await self._send({"do": "cancel", "id": job_id})
        done, _ = await asyncio.wait([ended], timeout=_GRACE_SECONDS)
        if not done:
            log.error("job %s could not be stopped: its engine is killed", job_id)
            self._kill()
        elif ended.exception() is None:  # its clip was stored before it could stop
            await asyncio.to_thread(LocalStorage(self._settings.output_dir).forget, job_id)

    async def _send(self, order: Mapping[str, Any]) -> None:
        process = self._process
        if process is None or process.stdin is None:
            raise WorkerLost(blamed=False)
        try:
            process.stdin.write(json.dumps(order).encode() + b"\n")
            await process.stdin.drain()
        except (ConnectionError, RuntimeError) as error:
            raise WorkerLost(blamed=False) from error

    def _kill(self) -> None:
        self._ready.clear()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    # --- the process -----------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Keep a process running until cancelled."""
        while True:
            pause = _AGAIN_SECONDS[min(self._failed_starts, len(_AGAIN_SECONDS) - 1)]
            await asyncio.sleep(pause)
            try:
                await self._one_life()
            except (OSError, ValueError, KeyError, TypeError):
                log.exception("the engine cannot be started, or its messages cannot be read")
            self._failed_starts += 1

    async def _one_life(self) -> None:
        self._metrics.engine_started()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self._command,
            stdin=PIPE,
            stdout=PIPE,
            limit=_LONGEST_LINE,
            start_new_session=True,  # a terminal's signals to the gateway must not reach it
        )
        self._process, self._blamed, self._at_work = process, None, None
        watch = asyncio.create_task(self._watch(process), name="watch the engine")
        try:
            with suppress(WorkerLost):
                await self._send({"settings": self._settings.with_secrets()})
            await self._listen(process)
        finally:
            watch.cancel()
            self._ready.clear()
            self._why = "the engine is starting again"
            await _end(process)
            self._process = None
            if self._works:
                log.error("the engine ended (%s) while it had a job", process.returncode)
            blamed = self._at_work if self._blamed is None else self._blamed
            for job_id, (_, ended) in self._works.items():
                if not ended.done():
                    ended.set_exception(WorkerLost(blamed=blamed in (None, job_id)))

    async def _watch(self, process: Process) -> None:
        """Kill a silent process: it is stopped, or stuck in a library that blocks the rest of
        it."""
        self._silent_seconds, looked_at = 0.0, time.monotonic()
        limit = min(_SILENT_SECONDS, self._settings.hang_seconds)
        while process.returncode is None:
            await asyncio.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            # A longer gap is this process's own: it was stopped, or its loop was busy.
            self._silent_seconds += min(now - looked_at, 2 * _LOOK_SECONDS)
            looked_at = now
            most = limit if self._ready.is_set() else self._settings.hang_seconds * LOAD_TIMES
            if self._silent_seconds > most:
                log.error(
                    "the engine has been silent for %.0f s: it is killed", self._silent_seconds
                )
                self._why = "the engine hung and is starting again"
                self._kill()
                return

    async def _listen(self, process: Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            told = json.loads(line)
            what = told["told"]
            self._silent_seconds = 0.0
            await self._order_previews()
            if what == "alive":
                continue
            if what == "ready":
                self._failed_starts = -1
                self._ready.set()
                self.models, self.takes = told["models"], told["takes"]
                log.info("the engine is ready: %s", ", ".join(told["models"].values()))
            elif what == "loras":
                self.loras = told["loras"]
            elif what == "unusable":
                self._unusable(told["error"])
            elif what in ("ending", "hangs"):
                self._will_end(told)
            else:
                self._hear(what, told)

    async def _order_previews(self) -> None:
        """Order previews of the jobs that anyone looks at, at regular times."""
        now = time.monotonic()
        for job_id, (work, _) in list(self._works.items()):
            due = now >= self._watched.get(job_id, 0.0) + _WATCHED_SECONDS
            if due and work.wants_preview():
                self._watched[job_id] = now
                with suppress(WorkerLost):
                    await self._send({"do": "watch", "id": job_id})

    def _will_end(self, told: Mapping[str, Any]) -> None:
        """Send it nothing more. Jobs that only waited in it are not to blame."""
        self._ready.clear()
        self._why = "the engine is starting again"
        self._blamed = told.get("id", "")
        if told["told"] == "hangs":
            log.error("the engine hangs in %s, with %s", told["stage"], told["id"])
        else:
            log.error("the engine's device is broken")

    def _unusable(self, why: str) -> None:
        self._why = why
        log.error("the engine cannot start: %s", why)
        if self._on_fatal is not None and self._failed_starts == 0:
            self._on_fatal(why)

    def _hear(self, what: str, told: Mapping[str, Any]) -> None:
        work, ended = self._works.get(told["id"], (None, None))
        if work is None or ended is None or ended.done():
            return
        if what == "preview":
            work.preview(Preview(told["uri"], told["step"]))
            return
        if what != "progress" or told["stage"] in _OFF_DEVICE:
            self._at_work = None if self._at_work == work.job_id else self._at_work
        else:
            self._at_work = work.job_id
        if what == "progress":
            work.progress(Progress(told["stage"], told["step"], told["steps"]))
        elif what == "done":
            ended.set_result(Done(told["output"], told["stage_seconds"]))
        elif what == "failed":
            ended.set_exception(WorkFailed(told["code"], told["error"]))


async def _end(process: Process) -> None:
    """Close its pipe, which makes it end, and wait. Kill it if it does not end."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), _EXIT_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
