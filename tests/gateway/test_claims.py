"""An endpoint renders a job once, even if the gateway handed it over twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.services.gateway import free_port, until
from tests.gateway.conftest import SERVE_ENDPOINT, eventually, gateway_process, wish
from tests.gateway.doors.test_aiml_door import PATH as AIML
from tests.gateway.doors.test_aiml_door import SAMPLE as AIML_SAMPLE
from tests.gateway.doors.test_oxen_door import QUEUE as OXEN
from tests.gateway.doors.test_oxen_door import SAMPLE as OXEN_SAMPLE
from tests.gateway.fake_endpoint import ENDPOINT, FakeEndpoint
from wan_engine.gateway.app import create_app, open_gateway
from wan_engine.gateway.backends.endpoint import EndpointBackend
from wan_engine.gateway.jobs.service import Jobs
from wan_engine.settings import Settings
from wan_engine.storage.claims import FIELD

BASE = "/v2/wan-2-6-i2v"


class Lossy(httpx.AsyncHTTPTransport):
    """A transport to the endpoint that loses the answers to the first `lost` posts."""

    def __init__(self, lost: int = 0) -> None:
        super().__init__()
        self.lost = lost
        self.cancelled: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await super().handle_async_request(request)
        if "/cancel/" in request.url.path:
            self.cancelled.append(request.url.path.rpartition("/")[2])
        if self.lost and request.url.path.endswith("/run"):
            self.lost -= 1
            raise httpx.ReadError("the connection broke")
        return answer


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[FakeEndpoint]:
    with FakeEndpoint(tmp_path / "far") as endpoint:
        yield endpoint


class Near:
    def __init__(self, http: httpx.AsyncClient, way: Lossy, jobs: Jobs) -> None:
        self.http, self.way, self.jobs = http, way, jobs

    async def run(self, **fields: Any) -> str:
        answer = await self.http.post(f"{BASE}/run", json={"input": wish(**fields)})
        return str(answer.json()["id"])

    async def ended(self, job_id: str) -> dict[str, Any]:
        for _ in range(2000):
            told = (await self.http.get(f"{BASE}/status/{job_id}")).json()
            if told["status"] not in ("IN_QUEUE", "IN_PROGRESS"):
                return dict(told)
            await asyncio.sleep(0.005)
        raise AssertionError(told)


@asynccontextmanager
async def near_gateway(
    tmp_path: Path, endpoint: FakeEndpoint, lost: int = 0, **options: Any
) -> AsyncIterator[Near]:
    settings = Settings(
        output_dir=tmp_path / "near",
        runpod_url=endpoint.url,
        runpod_endpoint=ENDPOINT,
        runpod_key="rpa_key",
        **options,
    )
    way = Lossy(lost)
    backend = EndpointBackend(settings, transport=way, poll_seconds=0.01)
    async with open_gateway(settings, backend) as gateway:
        transport = httpx.ASGITransport(create_app(gateway))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            yield Near(http, way, gateway.context.jobs)


def opened(
    tmp_path: Path, endpoint: FakeEndpoint, test: Callable[[Near], Any], **options: Any
) -> None:
    async def line() -> None:
        async with near_gateway(tmp_path, endpoint, **options) as near:
            await test(near)

    asyncio.run(line())


async def sent_twice(near: Near, endpoint: FakeEndpoint, prompt: str) -> str:
    """The id of a job whose first copy has begun and whose answer was lost."""
    endpoint.answers.clear()
    near.way.lost = 1
    job_id = await near.run(prompt=prompt)
    await eventually(lambda: prompt in endpoint.renderer.begun)
    endpoint.answers.set()
    return job_id


async def settled(endpoint: FakeEndpoint) -> tuple[str, str]:
    """The ids of both copies, once the second has answered with the first."""
    await eventually(lambda: len(endpoint.jobs) == 2)
    first, second = endpoint.jobs
    await eventually(lambda: endpoint.jobs[second]["status"] == "COMPLETED")
    assert endpoint.jobs[second]["output"] == {"duplicate_of": first}
    return first, second


def test_a_job_whose_answer_is_lost_is_sent_again_and_rendered_once(
    tmp_path: Path, endpoint: FakeEndpoint
) -> None:
    """In whichever order the copies arrive."""

    async def test(near: Near) -> None:
        told = await near.ended(await near.run(prompt="sleep 0.3"))
        assert told["status"] == "COMPLETED"
        assert set(told["output"]) == {"video_url", "result", "cost", "seed"}
        assert len(endpoint.posted) == 2
        assert len({fields[FIELD] for fields in endpoint.posted}) == 1
        assert endpoint.renderer.renders == ["sleep 0.3"]

    opened(tmp_path, endpoint, test, lost=1)


def test_a_gateway_killed_while_handing_over_a_job_has_it_rendered_once(
    tmp_path: Path, endpoint: FakeEndpoint
) -> None:
    port = free_port()
    endpoint.answers.clear()
    with gateway_process(tmp_path, port, SERVE_ENDPOINT, **endpoint.settings()) as process:
        body = {"input": wish(prompt="sleep 0.5")}
        job_id = process.ask("POST", f"{BASE}/run", json=body)["id"]
        until(lambda: len(endpoint.posted) == 1)
        process.popen.kill()
        process.popen.wait()
    endpoint.answers.set()
    with gateway_process(tmp_path, port, SERVE_ENDPOINT, **endpoint.settings()) as process:
        status = f"{BASE}/status/{job_id}"
        until(lambda: process.ask("GET", status)["status"] == "COMPLETED")
    assert len(endpoint.posted) == 2
    assert endpoint.renderer.renders == ["sleep 0.5"]


def test_a_clip_that_was_finished_meanwhile_is_returned_again(
    tmp_path: Path, endpoint: FakeEndpoint
) -> None:
    """Even if the endpoint has deleted the first job, as Runpod does after half an hour."""

    async def test(near: Near) -> None:
        endpoint.answers.clear()
        near.way.lost = 1
        job_id = await near.run(prompt="sleep 0")
        await eventually(lambda: "COMPLETED" in str(endpoint.jobs))
        endpoint.end(next(iter(endpoint.jobs)), None)
        endpoint.answers.set()
        assert (await near.ended(job_id))["status"] == "COMPLETED"

    opened(tmp_path, endpoint, test)
    assert len(endpoint.posted) == 2 and len(endpoint.renderer.renders) == 1


@pytest.mark.parametrize("status", [None, "FAILED", "TIMED_OUT"])
def test_a_first_copy_without_a_clip_does_not_stop_the_job_from_being_rendered(
    tmp_path: Path, endpoint: FakeEndpoint, status: str | None
) -> None:
    async def test(near: Near) -> None:
        job_id = await sent_twice(near, endpoint, "stuck once")
        first, _ = await settled(endpoint)
        endpoint.end(first, status)
        assert (await near.ended(job_id))["status"] == "COMPLETED"

    opened(tmp_path, endpoint, test)
    names = [fields[FIELD].partition("/")[2] for fields in endpoint.posted]
    assert names == ["0.0", "0.0", "0.1"]
    assert endpoint.renderer.renders == ["stuck once"]


def test_a_first_copy_that_failed_by_its_callers_fault_fails_the_job(
    tmp_path: Path, endpoint: FakeEndpoint
) -> None:
    async def test(near: Near) -> None:
        told = await near.ended(await sent_twice(near, endpoint, "refuse blue"))
        assert (told["status"], told["error"]) == ("FAILED", 'field "prompt" is blue')
        await settled(endpoint)

    opened(tmp_path, endpoint, test)
    assert len(endpoint.posted) == 2


def test_a_cancel_ends_the_rendering_copy(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    async def test(near: Near) -> None:
        job_id = await sent_twice(near, endpoint, "stuck once")
        first, _ = await settled(endpoint)
        async with asyncio.timeout(60):  # its end is known there, not yet here
            while (job := await near.jobs.get(job_id)) is None or job.remote_id != first:
                await asyncio.sleep(0.01)
        await near.http.post(f"{BASE}/cancel/{job_id}")
        await eventually(lambda: near.way.cancelled == [first])
        assert endpoint.jobs[first]["status"] == "CANCELLED"

    opened(tmp_path, endpoint, test)
    assert endpoint.renderer.renders == []


@pytest.mark.parametrize(("on", "code"), [(True, "encode_failed"), (False, "internal_error")])
def test_a_worker_gives_the_error_code_to_callers_that_name_their_renders(
    tmp_path: Path, endpoint: FakeEndpoint, on: bool, code: str
) -> None:
    async def test(near: Near) -> None:
        told = await near.ended(job_id := await near.run(prompt="fail once"))
        assert (told["status"], told["error"]) == ("FAILED", "The clip could not be encoded")
        job = await near.jobs.get(job_id)
        assert job is not None and job.error_code == code

    opened(tmp_path, endpoint, test, runpod_claims=on)
    (far,) = endpoint.jobs.values()
    assert far.get("output") == ({"error_code": code} if on else None)


def test_a_retry_is_another_render(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    async def test(near: Near) -> None:
        job_id = await near.run(prompt="fail once")
        assert (await near.ended(job_id))["status"] == "FAILED"
        await near.http.post(f"{BASE}/retry/{job_id}")
        assert (await near.ended(job_id))["status"] == "COMPLETED"

    opened(tmp_path, endpoint, test)
    names = [fields[FIELD].partition("/")[2] for fields in endpoint.posted]
    assert names == ["0.0", "1.0"]


@pytest.mark.parametrize("on", [True, False])
def test_no_caller_can_name_a_render(tmp_path: Path, endpoint: FakeEndpoint, on: bool) -> None:
    """Tried at each door, in each place that accepts fields."""
    forged = {FIELD: "another's/0.0"}
    sent = [
        (f"{BASE}/run", {"input": {**wish(prompt="sleep 0"), **forged}, **forged}),
        (AIML, {**AIML_SAMPLE, "prompt": "sleep 0", **forged}),
        (OXEN, {**OXEN_SAMPLE, "prompt": "sleep 0", **forged}),
    ]

    async def test(near: Near) -> None:
        for path, body in sent:
            answer = await near.http.post(path, json=body)
            assert answer.status_code in (200, 201), answer.text
        await eventually(lambda: len(endpoint.posted) == len(sent))

    opened(tmp_path, endpoint, test, runpod_claims=on)
    for fields in endpoint.posted:
        assert (FIELD in fields) is on and fields.get(FIELD) != forged[FIELD]


@pytest.mark.parametrize("strict", ["workers", "door"])
def test_an_endpoint_of_others_that_refuses_the_field_no_longer_gets_it(
    tmp_path: Path, strict: str
) -> None:
    with FakeEndpoint(tmp_path / "far", strict=strict) as endpoint:

        async def test(near: Near) -> None:
            for _ in range(2):
                told = await near.ended(await near.run(prompt="sleep 0"))
                assert told["status"] == "COMPLETED"

        opened(tmp_path, endpoint, test)
        assert [FIELD in fields for fields in endpoint.posted] == [True, False, False]


def test_a_callers_words_do_not_disable_the_field(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    async def test(near: Near) -> None:
        told = await near.ended(await near.run(prompt=f"refuse {FIELD}"))
        assert told["status"] == "FAILED" and FIELD in told["error"]
        await near.ended(await near.run(prompt="sleep 0"))

    opened(tmp_path, endpoint, test)
    assert all(FIELD in fields for fields in endpoint.posted)
