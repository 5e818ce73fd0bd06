"""A Runpod endpoint with this project's workers: its API on a local port, its queue, and the real
`Handler` with an engine that renders nothing but stores clips in a real storage.

The prompt controls a job: "sleep 0.5" takes that long, "refuse" fails as the caller's fault. The
first time, "fail once" fails and "stuck once" does not end.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

from aiohttp import web

from handler import Handler
from wan_engine.control import Control
from wan_engine.errors import EncodeFailed, InvalidRequest
from wan_engine.schema import VideoRequest, VideoResult
from wan_engine.settings import Settings
from wan_engine.storage import LocalStorage, Storage

ENDPOINT = "abc123"
_RECORD = {"cost": "0.5", "seed": 7}


class Renderer:
    """Replaces the engine. `begun` and `renders` are prompts; `renders` is in the order in which
    jobs ended."""

    def __init__(self, folder: Path) -> None:
        self.storage = LocalStorage(folder)
        self.renders: list[str] = []
        self.begun: set[str] = set()

    def generate(
        self, request: VideoRequest, control: Control, storage: Storage | None = None
    ) -> VideoResult:
        storage = storage or self.storage
        if (done := storage.finished(control.job_id, control)) is not None:
            return VideoResult(done[0], Decimal(done[1]["cost"]), done[1]["seed"])
        first = request.prompt not in self.begun
        self.begun.add(request.prompt)
        what, _, rest = request.prompt.partition(" ")
        if what == "refuse":
            raise InvalidRequest(f'field "prompt" is {rest}')
        if what == "fail" and first:
            raise EncodeFailed("The clip could not be encoded")
        seconds = float(rest.split()[0]) if what == "sleep" else 0
        end = time.monotonic() + (3600 if what == "stuck" and first else seconds)
        while time.monotonic() < end:
            control.checkpoint()
            time.sleep(0.005)
        self.renders.append(request.prompt)
        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
            file.write(b"clip")
            file.flush()
            url = storage.put(Path(file.name), control.job_id, _RECORD, control)
        return VideoResult(url, Decimal("0.5"), 7)


class FakeEndpoint:
    """`jobs` has the status bodies by id, `posted` the inputs. While `answers` is cleared, a job is
    accepted and its POST is not answered. `strict` names who refuses unknown fields: "workers",
    like the SDK's `rp_validator`, or the "door"."""

    def __init__(self, folder: Path, *, workers: int = 3, strict: str = "") -> None:
        self.renderer = Renderer(folder)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.posted: list[dict[str, Any]] = []
        self.answers = threading.Event()
        self.answers.set()
        self.answer_seconds = 0.0
        self.url = ""
        self._strict = strict
        settings = Settings(output_dir=folder)
        self._handlers = [
            Handler(self.renderer, settings, report=True)  # type: ignore[arg-type]
            for _ in range(workers)
        ]
        self._runs: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._queue: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="endpoint", daemon=True)
        self._ready = threading.Event()

    def __enter__(self) -> FakeEndpoint:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def settings(self) -> dict[str, str]:
        """The settings of a gateway that renders here."""
        return {
            "WAN_RUNPOD_URL": self.url,
            "WAN_RUNPOD_ENDPOINT": ENDPOINT,
            "WAN_RUNPOD_KEY": "rpa_key",
            "WAN_RATE_LIMIT": "0",
        }

    def end(self, job_id: str, status: str | None) -> None:
        """Ends a job without a clip. None deletes the job."""
        if status is None:
            del self.jobs[job_id]
        else:
            self.jobs[job_id].update(status=status, error="job timed out after 1 retries")
        if (run := self._runs.get(job_id)) is not None:
            self._loop.call_soon_threadsafe(run.cancel)

    # --- the workers

    async def _work(self, handler: Handler) -> None:
        while True:
            job_id, payload = await self._queue.get()
            if self.jobs.get(job_id, {}).get("status") != "IN_QUEUE":
                continue
            self.jobs[job_id].update(status="IN_PROGRESS", workerId="worker-1")
            run = self._runs[job_id] = asyncio.create_task(self._outcome(handler, job_id, payload))
            await asyncio.wait([run])
            if run.cancelled() or self.jobs.get(job_id, {}).get("status") != "IN_PROGRESS":
                continue
            output = run.result()
            error = output.pop("error", None)
            if error is None:
                self.jobs[job_id].update(status="COMPLETED", output=_fetchable(output))
            else:  # the SDK posts the other keys beside `error` as the output
                beside = {"output": output} if output else {}
                self.jobs[job_id].update(status="FAILED", error=error, **beside)

    async def _outcome(self, handler: Handler, job_id: str, payload: Any) -> dict[str, Any]:
        if self._strict and (refused := _unexpected(payload)):
            return {"error": refused}
        return await handler({"id": job_id, "input": payload})

    # --- its API

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._open())
        self._ready.set()
        self._loop.run_forever()

    async def _open(self) -> None:
        app = web.Application()
        base = f"/v2/{ENDPOINT}"
        app.router.add_get(f"{base}/health", _answering(lambda _: {"jobs": {}, "workers": {}}))
        app.router.add_post(f"{base}/run", self._run)
        app.router.add_get(f"{base}/status/{{job}}", _answering(self._status))
        app.router.add_post(f"{base}/cancel/{{job}}", _answering(self._cancel))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v2"
        self._workers = [asyncio.create_task(self._work(each)) for each in self._handlers]

    async def _close(self) -> None:
        for task in [*self._workers, *self._runs.values()]:
            task.cancel()
        await asyncio.wait([*self._workers, *self._runs.values()])
        await self._runner.cleanup()

    async def _run(self, request: web.Request) -> web.Response:
        payload, job_id = (await request.json())["input"], f"{uuid4()}-u1"
        if self._strict == "door" and (refused := _unexpected(payload)):
            self.posted.append(payload)
            return web.json_response({"error": refused}, status=422)
        self.jobs[job_id] = {"id": job_id, "status": "IN_QUEUE"}
        self.posted.append(payload)
        self._queue.put_nowait((job_id, payload))
        await asyncio.sleep(self.answer_seconds)
        while not self.answers.is_set():
            await asyncio.sleep(0.01)
        return web.json_response({"id": job_id, "status": "IN_QUEUE"})

    def _status(self, request: web.Request) -> dict[str, Any] | None:
        return self.jobs.get(request.match_info["job"])

    def _cancel(self, request: web.Request) -> dict[str, Any] | None:
        job = self.jobs.get(request.match_info["job"])
        if job is not None and job["status"] in ("IN_QUEUE", "IN_PROGRESS"):
            job["status"] = "CANCELLED"
            if (run := self._runs.get(job["id"])) is not None:
                run.cancel()
        return job


def _unexpected(payload: dict[str, Any]) -> str:
    unknown = [name for name in payload if name not in VideoRequest.model_fields]
    lines = [f"Unexpected input. {name} is not a valid input option." for name in unknown]
    return str(lines) if lines else ""


def _answering(
    find: Callable[[web.Request], dict[str, Any] | None],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(request: web.Request) -> web.Response:
        found = find(request)
        if found is None:
            return web.json_response({"error": "job not found"}, status=404)
        return web.json_response(found)

    return answer


def _fetchable(output: dict[str, Any]) -> dict[str, Any]:
    """A URL as from a bucket, because a gateway does not pass on a worker's `file:` URL."""
    return {
        name: value.replace("file://", "http://bucket") if isinstance(value, str) else value
        for name, value in output.items()
    }
