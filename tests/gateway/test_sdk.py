"""The runpod SDK's own client, with only its base URL pointed at the gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks.services.gateway import until
from tests.gateway.conftest import Listening, wish
from wan_engine.gateway.keys import digest

KEY = "wan_key"


@pytest.fixture
def listening(
    listen: Callable[..., Listening], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Listening]:
    import runpod

    made = listen(api_keys={"ann": digest(KEY)})
    monkeypatch.setattr(runpod, "endpoint_url_base", f"{made.url}/v2")
    monkeypatch.setattr(runpod, "api_key", KEY)
    yield made


@pytest.fixture
def endpoint(listening: Listening) -> Any:
    import runpod

    made = runpod.Endpoint("wan-2-6-i2v")
    yield made
    made.rp_client.rp_session.close()


def test_run_status_and_output(endpoint: Any) -> None:
    job = endpoint.run(wish())
    output = job.output(timeout=10)
    assert output["video_url"].startswith("http://127.0.0.1:") and output["cost"] == 0.5
    assert job.status() == "COMPLETED"


def test_run_sync(endpoint: Any) -> None:
    assert endpoint.run_sync(wish(), timeout=10)["video_url"]
    assert endpoint.run_sync({"input": wish()}, timeout=10)["video_url"]


def test_run_sync_of_a_job_that_the_engine_fails_returns_nothing(endpoint: Any) -> None:
    """The SDK does not return the error, but the body has it."""
    assert endpoint.run_sync(wish(prompt="fail:encode_failed:no"), timeout=10) is None


def test_cancel(endpoint: Any, listening: Listening) -> None:
    job = endpoint.run(wish(prompt="hang"))
    until(lambda: job.status() == "IN_PROGRESS")
    assert job.cancel() == {"id": job.job_id, "status": "CANCELLED"}
    until(lambda: listening.backend.stopped == [job.job_id])


def test_stream(endpoint: Any) -> None:
    begun = time.monotonic()
    parts = list(endpoint.run(wish()).stream())
    assert [part["cost"] for part in parts] == [0.5]
    assert time.monotonic() - begun < 10


def test_health_and_purge_queue(endpoint: Any, listening: Listening) -> None:
    listening.backend.hold()
    jobs = [endpoint.run(wish()) for _ in range(3)]
    until(lambda: endpoint.health()["jobs"]["inProgress"] == 1)
    assert endpoint.health()["workers"]["running"] == 1
    assert endpoint.purge_queue() == {"removed": 2, "status": "completed"}
    assert jobs[2].status() == "CANCELLED"


def test_a_wrong_key_and_an_unknown_job_raise_the_errors_of_the_sdk(listening: Listening) -> None:
    import runpod
    from requests import HTTPError

    wrong = runpod.Endpoint("wan-2-6-i2v", api_key="wrong")
    with pytest.raises(RuntimeError, match="401"):
        wrong.health()
    unknown = runpod.Endpoint("nope", api_key=KEY)
    with pytest.raises(HTTPError, match="404"):
        unknown.run(wish())
    for made in (wrong, unknown):
        made.rp_client.rp_session.close()


def test_the_asynchronous_client(listening: Listening) -> None:
    from runpod import AsyncioEndpoint, http_client

    async def line() -> None:
        async with http_client.AsyncClientSession() as session:
            endpoint = AsyncioEndpoint("wan-2-6-i2v", session)
            job = await endpoint.run(wish())
            assert (await job.output(timeout=10))["cost"] == 0.5
            hanging = await endpoint.run(wish(prompt="hang"))
            assert (await hanging.cancel())["status"] == "CANCELLED"
            assert (await endpoint.health())["jobs"]["completed"] == 1
            assert (await endpoint.purge_queue())["status"] == "completed"
            parts = [part async for part in job.stream()]
            assert len(parts) == 1

    asyncio.run(line())
