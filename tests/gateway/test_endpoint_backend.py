"""A Runpod endpoint as backend. A second gateway plays Runpod, with its door."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from benchmarks.services.instant import InstantBackend
from tests.gateway.conftest import Served, eventually, wish
from wan_engine.control import Progress
from wan_engine.errors import (
    ConfigurationError,
    ContentPolicy,
    InvalidMedia,
    StorageFailed,
    TimeLimitTooShort,
)
from wan_engine.gateway.app import create_app, open_gateway
from wan_engine.gateway.backends import endpoint, open_backend
from wan_engine.gateway.backends.endpoint import EndpointBackend
from wan_engine.gateway.backends.own_engine import LocalBackend
from wan_engine.gateway.doors.runpod import door as runpod_door
from wan_engine.gateway.keys import digest
from wan_engine.gateway.metrics import Metrics
from wan_engine.settings import Settings

DOORS = (runpod_door.door,)

KEY = "rpa_key"
ENDPOINT = "abc123"
BASE = "/v2/wan-2-6-i2v"


class Faulty(httpx.AsyncBaseTransport):
    """A transport to Runpod with faults: `fault(request)` returns a status, an error, or None."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.inner = inner
        self.fault: Callable[[httpx.Request], int | Exception | None] = lambda request: None
        self.asked: list[tuple[str, str]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.method, request.url.path))
        fault = self.fault(request)
        if isinstance(fault, Exception):
            raise fault
        if fault is not None:
            return httpx.Response(fault, json={"error": "a fault"})
        return await self.inner.handle_async_request(request)

    def count(self, operation: str) -> int:
        return sum(f"/{operation}" in path for _, path in self.asked)


class Pair:
    """`near` is the tested gateway, `far` the one that plays Runpod."""

    def __init__(self, near: Served, far: Served, way: Faulty) -> None:
        self.near, self.far, self.way = near, far, way

    async def post(self, path: str, fields: dict[str, Any] | None = None) -> dict[str, Any]:
        body = None if fields is None else {"input": fields}
        answer = await self.near.http.post(BASE + path, json=body)
        return dict(answer.json())

    async def status(self, job_id: str) -> str:
        return str((await self.near.http.get(f"{BASE}/status/{job_id}")).json()["status"])

    async def until(self, job_id: str, status: str) -> None:
        for _ in range(1000):
            if await self.status(job_id) == status:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(await self.status(job_id))


@asynccontextmanager
async def far_gateway(tmp_path: Path) -> AsyncIterator[Served]:
    settings = Settings(
        output_dir=tmp_path / "far",
        api_keys={"near": digest(KEY)},
        endpoints=(ENDPOINT,),
        shutdown_seconds=0,
    )
    backend = InstantBackend(tmp_path / "far", slots=5)
    async with open_gateway(settings, backend) as gateway:
        transport = httpx.ASGITransport(create_app(gateway))
        async with httpx.AsyncClient(transport=transport, base_url="http://far") as http:
            yield Served(gateway, backend, http)


@asynccontextmanager
async def near_gateway(tmp_path: Path, far: Served, **options: Any) -> AsyncIterator[Pair]:
    settings = Settings(
        output_dir=tmp_path / "near",
        runpod_url="http://far/v2",
        runpod_endpoint=ENDPOINT,
        runpod_key=options.pop("key", KEY),
        **options,
    )
    way = Faulty(httpx.ASGITransport(create_app(far.gateway)))
    backend = EndpointBackend(settings, transport=way, poll_seconds=0.01)
    async with open_gateway(settings, backend) as gateway:
        transport = httpx.ASGITransport(create_app(gateway))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            yield Pair(Served(gateway, None, http), far, way)  # type: ignore[arg-type]


Test = Callable[[Pair], Any]


def paired(tmp_path: Path, test: Test, **options: Any) -> None:
    async def line() -> None:
        async with far_gateway(tmp_path) as far, near_gateway(tmp_path, far, **options) as pair:
            await test(pair)

    asyncio.run(line())


def test_a_clip_is_rendered_at_the_endpoint(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        body = await pair.post("/runsync", wish(seed=3))
        assert body["status"] == "COMPLETED" and body["output"]["cost"] == 0.5
        assert body["output"]["video_url"].startswith("http://far/results/")
        assert body["workerId"] == "worker-1"
        (request,) = pair.far.backend.requests.values()
        assert isinstance(request, dict) and request.pop("wan_claim").endswith("/0.0")
        assert request == wish(seed=3)

    paired(tmp_path, test)


def test_waiting_and_running_are_distinguished_and_progress_is_passed_on(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        pair.far.backend.hold()
        ids = [(await pair.post("/run", wish()))["id"] for _ in range(6)]
        for job_id in ids[:5]:
            await pair.until(job_id, "IN_PROGRESS")
        assert await pair.status(ids[5]) == "IN_QUEUE"  # `far` has five slots
        running = (await pair.near.http.get(f"{BASE}/status/{ids[0]}")).json()
        assert running["output"] == {"stage": "denoise", "step": 1, "steps": 4}
        pair.far.backend.release()
        for job_id in ids:
            await pair.until(job_id, "COMPLETED")

    paired(tmp_path, test)


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize(
    ("added", "passed"),
    [
        ({"preview": "data:image/webp;base64,AAAA", "preview_step": 2}, 2),
        ({"preview": "data:image/jpeg;base64,AA=="}, 3),
        ({"preview": "data:text/html;base64,AAAA"}, None),
        ({"preview": 'data:image/webp;base64,A" onerror="x'}, None),
        ({"preview": "https://elsewhere/a.webp"}, None),
        ({"preview": ["data:image/webp;base64,AAAA"]}, None),
        ({"preview": "data:image/webp;base64,AAAA", "preview_step": "2"}, None),
        ({}, None),
    ],
)
def test_a_workers_preview_is_passed_on_to_callers_that_look(
    added: dict[str, Any], passed: int | None, looks: bool
) -> None:
    told: list[Any] = []
    work: Any = SimpleNamespace(preview=told.append, wants_preview=lambda: looks)
    endpoint._pass_preview(work, added, Progress("denoise", 3, 4))
    assert [preview.step for preview in told] == ([passed] if passed and looks else [])


@pytest.mark.parametrize(
    ("said", "code", "status"),
    [
        ('field "seed" must be an integer', "invalid_request", 400),
        (str(InvalidMedia("image", "the server answered 404")), "invalid_media", 400),
        (str(InvalidMedia("references[0]", "the server answered 404")), "invalid_media", 400),
        ("Invalid image URL", "invalid_media", 400),
        ("Invalid audio format", "invalid_media", 400),
        (str(InvalidMedia("first_clip", "the server answered 404")), "invalid_media", 400),
        (str(ContentPolicy("image")), "content_policy", 400),
        (str(TimeLimitTooShort(310, 118)), "time_limit_too_short", 400),
        (str(StorageFailed("The finished clip could not be stored")), "internal_error", 200),
        ('{"error_type": "KeyError", "error_traceback": "/app/x.py"}', "internal_error", 200),
    ],
)
def test_a_failure_has_the_workers_sentence_and_its_class(
    tmp_path: Path, said: str, code: str, status: int
) -> None:
    """The failure of a worker that sends no error code."""

    async def test(pair: Pair) -> None:
        fields = wish(prompt=f"fail:encode_failed:{said}")
        answer = await pair.near.http.post(f"{BASE}/runsync", json={"input": fields})
        body = answer.json()
        assert (answer.status_code, body["status"]) == (status, "FAILED")
        assert "app/x.py" not in body["error"]
        job = await pair.near.jobs.get(body["id"])
        assert job is not None and job.error_code == code
        assert code == "internal_error" or body["error"] == said

    paired(tmp_path, test)


def test_a_cancel_is_passed_on(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        job_id = (await pair.post("/run", wish(prompt="hang")))["id"]
        await pair.until(job_id, "IN_PROGRESS")
        assert (await pair.post(f"/cancel/{job_id}"))["status"] == "CANCELLED"
        await eventually(lambda: len(pair.far.backend.stopped) == 1)

    paired(tmp_path, test)


def test_a_job_cancelled_at_the_endpoint_fails_here(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        job_id = (await pair.post("/run", wish(prompt="hang")))["id"]
        await pair.until(job_id, "IN_PROGRESS")
        (far_id,) = pair.far.backend.requests
        far_job = await pair.far.jobs.get(far_id)
        assert far_job is not None
        await pair.far.jobs.cancel(far_job)
        await pair.until(job_id, "FAILED")

    paired(tmp_path, test)


def test_faults_of_the_connection_are_survived_and_nothing_is_sent_twice(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        faults = iter([429, 500, httpx.ConnectError("refused"), 401, None, 503, 502, None, 429])

        def fault(request: httpx.Request) -> Any:
            return None if request.url.path.endswith("/health") else next(faults, None)

        pair.way.fault = fault
        body = await pair.post("/runsync", wish())
        assert body["status"] == "COMPLETED"
        assert len(pair.far.backend.requests) == 1 and pair.way.count("run") == 5

    paired(tmp_path, test)


def test_a_job_that_the_endpoint_refuses_fails(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        pair.way.fault = lambda request: 413 if request.url.path.endswith("/run") else None
        body = await pair.post("/runsync", wish())
        assert (body["status"], body["error"]) == ("FAILED", "a fault")

    paired(tmp_path, test)


def test_a_wrong_key_holds_jobs_and_is_reported_to_the_operator(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        job_id = (await pair.post("/run", wish()))["id"]
        await eventually(lambda: pair.way.count("run") > 2)
        assert await pair.status(job_id) == "IN_QUEUE"
        ready = await pair.near.http.get("/readyz")
        assert ready.status_code == 503 and "API key" in ready.json()["waiting_for"][0]

    paired(tmp_path, test, key="wrong")


def test_the_next_gateway_follows_the_same_remote_job(tmp_path: Path) -> None:
    async def line() -> None:
        async with far_gateway(tmp_path) as far:
            far.backend.hold()
            async with near_gateway(tmp_path, far) as pair:
                job_id = (await pair.post("/run", wish()))["id"]
                await pair.until(job_id, "IN_PROGRESS")
            assert far.backend.stopped == []  # left running, not cancelled
            async with near_gateway(tmp_path, far) as pair:
                await pair.until(job_id, "IN_PROGRESS")
                far.backend.release()
                await pair.until(job_id, "COMPLETED")
                assert pair.way.count("run") == 0 and len(far.backend.requests) == 1

    asyncio.run(line())


def test_a_remote_job_that_was_deleted_is_sent_again(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        job_id = (await pair.post("/run", wish(prompt="hang")))["id"]
        await pair.until(job_id, "IN_PROGRESS")
        (far_id,) = pair.far.backend.requests
        far_job = await pair.far.jobs.get(far_id)
        assert far_job is not None
        await pair.far.jobs.expire(far_job)  # answers 404 from now on
        await eventually(lambda: len(pair.far.backend.requests) == 2)
        await pair.until(job_id, "IN_PROGRESS")
        await pair.post(f"/cancel/{job_id}")

    paired(tmp_path, test)


def test_the_endpoint_applies_the_execution_timeout(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        pair.far.backend.hold()
        body = {"input": wish(), "policy": {"executionTimeout": 7000}}
        await pair.near.http.post(f"{BASE}/run", json=body)
        await eventually(lambda: pair.far.backend.requests)
        far_job = await pair.far.jobs.get(next(iter(pair.far.backend.requests)))
        assert far_job is not None and far_job.run_seconds == 7.0

    paired(tmp_path, test)


@pytest.mark.parametrize(
    ("output", "url"),
    [
        ({"video_url": "https://v/1.mp4"}, "https://v/1.mp4"),
        ({"result": "https://v/1.mp4"}, "https://v/1.mp4"),
        ({"video_url": "/outputs/1.mp4"}, None),
        ("https://v/1.mp4", None),
        (None, None),
    ],
)
def test_the_output_of_another_worker_is_converted_or_refused(
    tmp_path: Path, output: object, url: str | None
) -> None:
    async def test(pair: Pair) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            told = {"id": "x", "status": "COMPLETED", "output": output}
            return httpx.Response(200, json=told)

        pair.way.inner = httpx.MockTransport(answer)
        body = await pair.post("/runsync", wish(duration=10, seed=5))
        if url is None:
            assert body["error"] == "The endpoint returned no video"
        else:
            assert body["output"] == {"video_url": url, "result": url, "cost": 1.0, "seed": 5}

    paired(tmp_path, test)


def test_the_settings_choose_the_backend() -> None:
    runpod = {"runpod_endpoint": "abc", "runpod_key": "k"}
    assert isinstance(open_backend(Settings(), Metrics()), LocalBackend)
    assert isinstance(open_backend(Settings(**runpod), Metrics()), EndpointBackend)
    local = Settings(**runpod, backend="local")
    assert isinstance(open_backend(local, Metrics()), LocalBackend)
    for settings in (Settings(backend="runpod"), Settings(runpod_endpoint="abc")):
        with pytest.raises(ConfigurationError, match="WAN_RUNPOD_KEY"):
            open_backend(settings, Metrics())


class Slow(httpx.AsyncBaseTransport):
    """A transport to Runpod that answers POST /run only after `go`, when the job was already
    accepted."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.inner = inner
        self.taken, self.go = asyncio.Event(), asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await self.inner.handle_async_request(request)
        if request.url.path.endswith("/run"):
            self.taken.set()
            await self.go.wait()
        return answer


def test_a_job_cancelled_while_it_is_handed_over_is_cancelled_there_too(
    tmp_path: Path,
) -> None:
    async def test(pair: Pair) -> None:
        slow = pair.way.inner = Slow(pair.way.inner)
        pair.far.backend.hold()
        job_id = (await pair.post("/run", wish()))["id"]
        await asyncio.wait_for(slow.taken.wait(), 10)
        await pair.near.http.post(f"{BASE}/cancel/{job_id}")
        slow.go.set()

        async def all_ended() -> bool:
            counts, _ = await pair.far.jobs.counts()
            return counts == {"cancelled": 1}

        for _ in range(1000):
            if await all_ended():
                return
            await asyncio.sleep(0.01)
        raise AssertionError((await pair.far.jobs.counts())[0])

    paired(tmp_path, test)


def test_a_gateway_that_ends_while_it_hands_over_a_job_keeps_its_id(tmp_path: Path) -> None:
    async def line() -> None:
        async with far_gateway(tmp_path) as far:
            far.backend.hold()
            async with near_gateway(tmp_path, far, shutdown_seconds=0) as pair:
                slow = pair.way.inner = Slow(pair.way.inner)
                job_id = (await pair.post("/run", wish()))["id"]
                await asyncio.wait_for(slow.taken.wait(), 10)
                asyncio.get_running_loop().call_later(0.1, slow.go.set)
            far.backend.release()
            async with near_gateway(tmp_path, far) as pair:
                await pair.until(job_id, "COMPLETED")
            assert len(far.backend.rendered) == 1

    asyncio.run(line())
