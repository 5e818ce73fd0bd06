"""A local Runpod control plane: the routes that the SDK's worker loop uses, with faults on request.

It has the routes of the pinned SDK only: job-take, job-take-batch and job-stop (held open, as in
production), job-done for progress and results, ping. It runs in a thread of the test's process.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

_HOLD_SECONDS = 1.0  # of a long poll; short, because a worker ends only when its polls end
ENDPOINT = "wan-2-6-i2v"


@dataclass
class Posts:
    """The posts for one job, in order of arrival."""

    progress: list[Any] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    after_result: int = 0
    refused: int = 0


class ControlPlane:
    """`submit` and `stop` are safe from the test's thread.

    `faults` are the answers to the next result posts: a status, or "drop" to close the connection.
    `events` are in order, as (what, job): "taken", the stage of a progress post, "result".
    `batches` are the sizes that job-take-batch was asked for. While `refusal` is set, every poll
    for jobs and stops gets that status at once. `go_away` closes the port.
    """

    def __init__(self) -> None:
        self.posts: dict[str, Posts] = defaultdict(Posts)
        self.faults: list[int | str] = []
        self.refusal: int | None = None
        self.refused = 0
        self.taken: list[str] = []
        self.batches: list[int] = []
        self.events: list[tuple[str, str]] = []
        self.polls = 0
        self.pings = 0
        self._jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._stops: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner
        self.port = 0
        self._thread = threading.Thread(target=self._serve, name="control plane", daemon=True)

    def __enter__(self) -> ControlPlane:
        self._thread.start()
        self.wait_until(lambda: self.port > 0, seconds=10)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # --- for tests

    def submit(self, job_id: str, payload: Any, **beside: Any) -> None:
        self._jobs.put({"id": job_id, "input": payload, **beside})

    def stop(self, job_id: str) -> None:
        self._stops.put(job_id)

    @property
    def stops_wait(self) -> bool:
        """Whether a stop has not been fetched yet."""
        return not self._stops.empty()

    def wait_until(self, condition: Callable[[], bool], *, seconds: float) -> float:
        """Seconds until `condition` held. Raises TimeoutError."""
        started = time.monotonic()
        with self._changed:
            while not condition():
                left = seconds - (time.monotonic() - started)
                if left <= 0:
                    raise TimeoutError(f"not within {seconds} s")
                self._changed.wait(min(left, 0.02))
        return time.monotonic() - started

    def result(self, job_id: str, *, seconds: float = 60) -> dict[str, Any]:
        self.wait_until(lambda: bool(self.posts[job_id].results), seconds=seconds)
        return self.posts[job_id].results[0]

    def environment(self) -> dict[str, str]:
        """The environment that Runpod sets in a worker. The SDK fills in `$ID` and `$RUNPOD_POD_ID`
        itself."""
        base = f"http://127.0.0.1:{self.port}/v2/{ENDPOINT}"
        return {
            "RUNPOD_POD_ID": "pod1",
            "RUNPOD_ENDPOINT_ID": ENDPOINT,
            "RUNPOD_AI_API_KEY": "KEY",
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=H200",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=H200",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=H200",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID?gpu=H200",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def go_away(self) -> None:
        """From now on, nothing listens."""
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)

    def come_back(self) -> None:
        """Listen again, on the same port."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    # --- for the worker

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._loop.run_forever()

    async def _listen(self) -> None:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_get(f"/v2/{ENDPOINT}/job-take/{{worker}}", self._take)
        app.router.add_get(f"/v2/{ENDPOINT}/job-take-batch/{{worker}}", self._take_batch)
        app.router.add_get(f"/v2/{ENDPOINT}/job-stop/{{worker}}", self._stop_signals)
        app.router.add_post(f"/v2/{ENDPOINT}/job-done/{{worker}}/{{job}}", self._done)
        app.router.add_get(f"/v2/{ENDPOINT}/ping/{{worker}}", self._ping)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    def _refused(self) -> web.Response | None:
        if self.refusal is None:
            return None
        self.refused += 1
        return web.Response(status=self.refusal)

    async def _held(self, source: queue.SimpleQueue[Any]) -> Any:
        """The next item within the hold time, or None. An immediate 204 would make the SDK spin."""
        end = time.monotonic() + _HOLD_SECONDS
        while time.monotonic() < end and not self._closing:
            try:
                return source.get_nowait()
            except queue.Empty:
                await asyncio.sleep(0.02)
        return None

    async def _take(self, _request: web.Request) -> web.Response:
        self.polls += 1
        if refused := self._refused():
            return refused
        job = await self._held(self._jobs)
        if job is None:
            return web.Response(status=204)
        self._note_taken(job)
        return web.json_response(job)

    async def _take_batch(self, request: web.Request) -> web.Response:
        """As many waiting jobs as the batch allows. It is held for the first job only."""
        self.polls += 1
        size = int(request.query["batch_size"])
        self.batches.append(size)
        first = await self._held(self._jobs)
        if first is None:
            return web.Response(status=204)
        jobs = [first]
        while len(jobs) < size:
            try:
                jobs.append(self._jobs.get_nowait())
            except queue.Empty:
                break
        for job in jobs:
            self._note_taken(job)
        return web.json_response(jobs)

    def _note_taken(self, job: dict[str, Any]) -> None:
        self._note(lambda: self.taken.append(job["id"]), ("taken", job["id"]))

    async def _stop_signals(self, _request: web.Request) -> web.Response:
        if refused := self._refused():
            return refused
        job_id = await self._held(self._stops)
        if job_id is None:
            return web.Response(status=204)
        return web.json_response({"jobsToStop": [job_id]})

    async def _done(self, request: web.Request) -> web.Response:
        job_id = request.match_info["job"]
        posts = self.posts[job_id]
        body = json.loads(await request.text())
        if body.get("status") == "IN_PROGRESS":
            late = bool(posts.results)
            posts.after_result += late
            output = body["output"]
            self._note(lambda: posts.progress.append(output), (output["stage"], job_id))
            return web.Response()
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            posts.refused += 1
            if fault == "drop":
                assert request.transport is not None
                request.transport.close()
                return web.Response()
            return web.Response(status=int(fault))
        self._note(lambda: posts.results.append(body), ("result", job_id))
        return web.Response()

    async def _ping(self, _request: web.Request) -> web.Response:
        self.pings += 1
        return web.Response()

    def _note(self, change: Callable[[], None], event: tuple[str, str]) -> None:
        with self._changed:
            change()
            self.events.append(event)
            self._changed.notify_all()
