"""The Runpod entry: settings, the engine, and an async handler that runs each job in a thread.

python handler.py                       runs test_input.json once
python handler.py --test_input '{...}'  runs one job from the shell
python handler.py --rp_serve_api        the SDK's local development API
"""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":
    # First of all: the imports take seconds and the weights minutes, in which no job can be lost.
    # The kernel ends a process even if Python is busy, but it passes the first process (PID 1) only
    # the signals that have a handler. The SDK sets its own later.
    for _number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(
            _number,
            signal.SIG_DFL if os.getpid() != 1 else lambda number, _frame: os._exit(128 + number),
        )

import asyncio
import logging
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

from wan_engine import (
    Control,
    Engine,
    EngineError,
    Progress,
    Settings,
    checks,
)
from wan_engine.control import Preview
from wan_engine.media.fetch import is_public_address
from wan_engine.runtime import logs
from wan_engine.runtime.faults import Device
from wan_engine.runtime.startup import Startup
from wan_engine.runtime.watchdog import Hang, Watchdog, dump_stacks
from wan_engine.schema import parse_request
from wan_engine.settings import environment
from wan_engine.storage import Storage, claims, open_given, unknown_fields
from wan_engine.worker.runpod_loop import Ending, end_process, install

log = logging.getLogger("wan_engine.handler")
_job_id: ContextVar[str | None] = ContextVar("job_id", default=None)

_LAST_PROGRESS_SECONDS = 10  # a progress post that takes longer is dropped for the result


def in_runpod_loop() -> bool:
    """Whether this process takes jobs from Runpod. The SDK's flags for local runs take
    precedence."""
    local = any(flag.startswith(("--test_input", "--rp_serve_api")) for flag in sys.argv[1:])
    return environment.in_runpod_loop() and not local


class Handler:
    """Runs jobs on one engine. A cancelled job ends at its next step or chunk.

    It runs one job at a time, or two with WAN_PREFETCH: one has the device, while the other
    downloads, waits or uploads.

    It is called with the SDK's job, and returns the `output` object or `{"error": sentence}`. With
    `ending`, a hung job or a broken device ends this process after all results are posted.
    """

    def __init__(
        self, engine: Engine, settings: Settings, *, report: bool, ending: Ending | None = None
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._report = report
        self._ending = ending
        self._device = Device(settings.device)
        self._watchdog = Watchdog(self._on_hang, frozen=True) if ending is not None else None
        self._jobs: dict[Control, Callable[[str], object]] = {}  # how to give up each job
        self._slots = 2 if settings.prefetch else 1
        self._threads = ThreadPoolExecutor(max_workers=self._slots, thread_name_prefix="job")

    def slots(self, _current: int) -> int:
        """The SDK's `concurrency_modifier`: how many jobs it may hold. The SDK asks before it takes
        one.

        At one, the SDK takes the next job only after the last result, so nothing of two jobs
        overlaps. It changes the number only while it holds no job, so the number cannot be raised
        during an upload.
        """
        return self._slots

    async def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        # The SDK gives all local jobs one id, and the id of a finished job returns its old clip.
        job_id = str(job["id"]) if self._report else f"{job['id']}-{uuid.uuid4().hex[:8]}"
        loop = asyncio.get_running_loop()
        latest = _Latest()

        def on_progress(progress: Progress) -> None:
            loop.call_soon_threadsafe(latest.put, progress)

        def on_preview(preview: Preview) -> None:
            loop.call_soon_threadsafe(latest.show, preview)

        shown = self._report and self._settings.previews == "on"
        control = Control(
            job_id,
            deadline_seconds=_time_limit(job, self._settings),
            on_progress=on_progress if self._report else _StageLog(job_id),
            on_preview=on_preview if shown else None,
            hang_seconds=self._settings.hang_seconds,
        )
        work = asyncio.ensure_future(self._outcome(job, control))
        reporter = asyncio.create_task(self._send_progress(job, latest)) if self._report else None
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            stage, stopped = control.stage, time.monotonic()
            control.cancel()
            # The SDK takes the next job as soon as this returns, so the thread must be free by
            # then.
            while not work.done():
                with suppress(asyncio.CancelledError):  # a second cancellation changes nothing
                    await asyncio.wait([work])
            after = time.monotonic() - stopped
            log.info("job %s was stopped in %s, its work ended %.2f s later", job_id, stage, after)
            raise
        finally:
            latest.close()
            if reporter is not None:
                await asyncio.wait([reporter], timeout=_LAST_PROGRESS_SECONDS)
                if not reporter.cancel() and (failure := reporter.exception()):
                    log.warning("progress of job %s was not sent: %r", job_id, failure)

    async def _outcome(self, job: Mapping[str, Any], control: Control) -> dict[str, Any]:
        """The result of `_run` on its thread, or the reason for giving the job up, because `_run`
        may never end."""
        loop = asyncio.get_running_loop()
        given_up: asyncio.Future[str] = loop.create_future()

        def give_up(why: str) -> None:
            if not given_up.done():
                given_up.set_result(why)

        self._jobs[control] = partial(loop.call_soon_threadsafe, give_up)
        work = loop.run_in_executor(self._threads, self._run, job, control)
        try:
            await asyncio.wait([work, given_up], return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._jobs[control]
        if given_up.done():
            return {"error": given_up.result(), "refresh_worker": True}
        return work.result()

    def _on_hang(self, hang: Hang) -> None:
        log.critical("job %s", hang)
        dump_stacks()
        why = f"The worker hung in {hang.stage} and had to end"
        self._end(why, hang.control)
        if (give_up := self._jobs.get(hang.control)) is not None:
            give_up(why)

    def _end(self, why: str, blamed: Control) -> None:
        """Take no more jobs. The other jobs end here, except one whose clip is finished."""
        assert self._ending is not None
        self._ending.begin(why)
        for control, give_up in list(self._jobs.items()):
            if control is not blamed and control.stage != "publish":
                give_up(f"{why} under another job: send this one again")
                control.cancel()

    def _run(self, job: Mapping[str, Any], control: Control) -> dict[str, Any]:
        """Run one job on a worker thread. It returns failures, because the SDK posts raised errors
        to the caller with traceback and host name."""
        _job_id.set(control.job_id)
        try:
            with self._watchdog.watching(control) if self._watchdog else nullcontext():
                output = self._generate(job, control)
            self._device.worked()
            return output
        except EngineError as error:
            log.info("job %s failed: %s: %s", control.job_id, error.code, error)
            return self._failed(error, str(error), job, control)
        except Exception as error:
            reference = uuid.uuid4().hex[:8]
            log.exception("job %s failed, reference %s", control.job_id, reference)
            return self._failed(error, f"Internal error, reference {reference}", job, control)

    def _failed(
        self, error: Exception, sentence: str, job: Mapping[str, Any], control: Control
    ) -> dict[str, Any]:
        """The answer for a failed job. A gateway of this project also gets the error's code.

        The SDK posts all keys except `error` as the job's output, and Runpod's own clients return
        that for a failed job instead of None. So nobody else gets the code.

        A broken device fails every later job, so the platform is asked for a new worker, and this
        one ends.
        """
        output: dict[str, Any] = {"error": sentence}
        if self._report and claims.named(job.get("input")):
            kind = error if isinstance(error, EngineError) else EngineError
            output[claims.ERROR_CODE] = kind.code
        if self._device.broke(error):
            output["refresh_worker"] = True
            if self._ending is not None:
                self._end("The worker's device broke", control)
        return output

    def _generate(self, job: Mapping[str, Any], control: Control) -> dict[str, Any]:
        """Render one job, into the job's own bucket if it names one. Raises `EngineError`."""
        claim, payload = None, job.get("input")
        if self._report:  # the sender of a local run cannot look its job up again
            claim, payload = claims.taken(payload)
        request = parse_request(payload)
        if unknown := unknown_fields(job):
            log.info("job %s: ignored beside its input: %s", control.job_id, ", ".join(unknown))
        given = open_given(job.get("s3Config"), self._settings, control, is_public_address)

        def render(*storage: Storage) -> dict[str, Any]:
            return self._engine.generate(request, control, *storage).output()

        with given as own:
            if claim is not None:
                return claims.once(claim, own or self._engine.storage, control, render)
            return render() if own is None else render(own)

    async def _send_progress(self, job: dict[str, Any], latest: _Latest) -> None:
        """Post progress in order, one at a time. The SDK's own `progress_update` starts a thread
        each time, and its last post can overtake the result, which leaves the job in progress for
        ever."""
        from runpod.http_client import AsyncClientSession
        from runpod.serverless.modules.rp_http import send_result

        async with AsyncClientSession() as session:
            while (progress := await latest.get()) is not None:
                output: dict[str, Any] = {
                    "stage": progress.stage,
                    "step": progress.step,
                    "steps": progress.steps,
                }
                if (preview := latest.preview) is not None:
                    output |= {"preview": preview.uri, "preview_step": preview.step}
                await send_result(session, {"status": "IN_PROGRESS", "output": output}, job)
                await latest.pause(self._settings.progress_seconds)


def _time_limit(job: Mapping[str, Any], settings: Settings) -> float | None:
    """The time limit of the job in seconds: WAN_JOB_SECONDS, or the job's own
    `policy.executionTimeout` (milliseconds) if that is shorter and the platform passes it on, which
    is not documented."""
    policy = job.get("policy")
    asked = policy.get("executionTimeout") if isinstance(policy, dict) else None
    limits = [settings.job_seconds] if settings.job_seconds else []
    if type(asked) is int and asked > 0:
        limits.append(asked / 1000)
    return min(limits, default=None)


class _StageLog:
    """The progress of a local run: one line in the log per stage."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._stage = ""

    def __call__(self, progress: Progress) -> None:
        if progress.stage != self._stage:
            self._stage = progress.stage
            log.info("%s: %s (%d steps)", self._job_id, progress.stage, progress.steps)


class _Latest:
    """A slot for the newest progress. Older progress that was not sent in time is never sent."""

    def __init__(self) -> None:
        self._value: Progress | None = None
        self.preview: Preview | None = None
        self._filled = asyncio.Event()
        self._closed = asyncio.Event()

    def put(self, progress: Progress) -> None:
        self._value = progress
        self._filled.set()

    def show(self, preview: Preview) -> None:
        """Add the preview to this progress and all later ones: a caller may look at any of them."""
        self.preview = preview
        if self._value is not None:
            self._filled.set()

    def close(self) -> None:
        self._closed.set()
        self._filled.set()

    async def get(self) -> Progress | None:
        """The newest progress; None once the job has ended."""
        await self._filled.wait()
        self._filled.clear()
        return None if self._closed.is_set() else self._value

    async def pause(self, seconds: float) -> None:
        """Wait, at most until the job ends."""
        try:
            await asyncio.wait_for(self._closed.wait(), seconds)
        except TimeoutError:
            return


def set_up_logging(settings: Settings, *, as_json: bool) -> None:
    """Log JSON lines in the Runpod loop and readable lines elsewhere. Call it after `import
    runpod`, which also sets up logging."""
    secrets = logs.secrets_of(settings)
    formatter = (
        logs.RunpodFormatter(_job_id.get, secrets)
        if as_json
        else logs.RedactingFormatter("%(levelname)-7s| %(message)s", secrets)
    )
    if as_json:  # in a local run, the reader of the log wrote the prompt
        logging.getLogger("wan_engine.prompts.text").setLevel(logging.WARNING)
    logs.set_up(settings, logging.StreamHandler(), formatter, replace=True)
    logs.redact_runpods(secrets)


def report_unhealthy(why: str) -> None:
    """Tell Runpod why this worker does not start, as the SDK reports its own fitness checks. Those
    run only after the weights are loaded."""
    # The function is private: the worker must not fail if it is gone.
    with suppress(ImportError, AttributeError):
        from runpod.serverless.modules import rp_fitness

        rp_fitness._report_unhealthy("start", logs.redact(why))


@contextmanager
def _watched(startup: Startup, settings: Settings) -> Iterator[None]:
    """End the process if a stage of its start hangs. The limit is half an hour, because a stage may
    load the weights."""

    def end(hang: Hang) -> None:
        log.critical("the %s", hang)
        dump_stacks()
        end_process()

    control = Control("start", hang_seconds=settings.hang_seconds)
    startup.on_done = partial(control.enter, "load")
    startup.on_done()
    with Watchdog(end, frozen=True).watching(control):
        yield


def main() -> None:
    """Load the engine, then start the SDK. A wrong setting ends the process with what to do."""
    # At DEBUG, its default, the SDK logs whole jobs: prompts, pictures and signed URLs.
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
    serverless, startup = in_runpod_loop(), Startup()
    try:
        settings = Settings.load()
        import runpod  # before logging is set up: it calls basicConfig itself

        set_up_logging(settings, as_json=serverless)
        startup.done("imports")
        checks.require(settings, worker=serverless)
        startup.done("checks")
        engine = Engine(settings, serverless=serverless)
        startup.done("choice")
        if serverless:
            with _watched(startup, settings):
                engine.start(startup)
        else:
            engine.load()
        install(ending := Ending())
    except EngineError as error:  # ConfigurationError, or too little memory for any recipe
        if serverless:
            report_unhealthy(str(error))
        sys.exit(f"Cannot start: {error}")
    if not serverless:
        # This removes the job's folder as well.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    handler = Handler(engine, settings, report=serverless, ending=ending if serverless else None)

    def slots(current: int) -> int:
        if "sdk" not in startup.stage_seconds:  # the SDK asks before it takes its first job
            startup.done("sdk")
            log.info("the worker takes jobs %s", startup)
        return handler.slots(current)

    # The method, not the object, because the SDK tells kinds of handlers apart with `inspect`.
    runpod.serverless.start({"handler": handler.__call__, "concurrency_modifier": slots})


if __name__ == "__main__":
    main()
