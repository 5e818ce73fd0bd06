"""Webhooks over real HTTP, to a receiver in this process."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.gateway.conftest import Serve, Shared, eventually, wish
from tests.gateway.jobs.test_jobs import new
from wan_engine.control import Control
from wan_engine.errors import InvalidMedia
from wan_engine.gateway.doors.runpod import door as runpod_door
from wan_engine.media.fetch import FetchLimits, post

DOORS = (runpod_door.door,)

BASE = "/v2/wan-2-6-i2v"


class Receiver:
    """Answers with each of `statuses` in turn, and then with 200."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.bodies.append(json.loads(body))
                receiver.headers.append(dict(self.headers))
                status = receiver.statuses.pop(0) if receiver.statuses else 200
                self.send_response(status)
                self.send_header("Location", "http://127.0.0.1:9/other")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.02,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, "COMPLETED"),
        ({"prompt": "fail:encode_failed:It went wrong"}, "FAILED"),
        ({"duration": 7}, "FAILED"),
    ],
)
def test_the_end_of_a_job_is_posted_with_its_request(
    serve: Serve, receiver: Receiver, fields: dict[str, Any], status: str
) -> None:
    async def line() -> None:
        async with serve(allow_private_urls=True) as served:
            wished = {"input": wish(**fields), "webhook": receiver.url}
            job_id = (await served.http.post(f"{BASE}/run", json=wished)).json()["id"]
            await eventually(lambda: receiver.bodies)
            told = (await served.http.get(f"{BASE}/status/{job_id}")).json()
            assert receiver.bodies == [{**told, "input": wished["input"], "webhook": receiver.url}]
            assert told["status"] == status
            assert list(receiver.bodies[0]) == sorted(receiver.bodies[0])
            assert receiver.headers[0]["Content-Type"] == "application/json"
            await asyncio.sleep(0.7)
            assert len(receiver.bodies) == 1

    asyncio.run(line())


@pytest.mark.parametrize(("statuses", "tries"), [([500], 2), ([302, 404], 3), ([500] * 9, 3)])
def test_a_refused_webhook_is_posted_twice_more(
    serve: Serve, receiver: Receiver, statuses: list[int], tries: int
) -> None:
    async def line() -> None:
        async with serve(allow_private_urls=True) as served:
            receiver.statuses = list(statuses)
            wished = {"input": wish(), "webhook": receiver.url}
            await served.http.post(f"{BASE}/runsync", json=wished)
            await eventually(lambda: len(receiver.bodies) == tries)
            store = served.gateway.store
            async with asyncio.timeout(30):
                while await store.due_webhooks(2**60, 10):
                    await asyncio.sleep(0.02)
            await asyncio.sleep(0.7)
            assert receiver.bodies == [receiver.bodies[0]] * tries

    asyncio.run(line())


def test_a_waiting_webhook_is_posted_by_the_next_gateway(serve: Serve, receiver: Receiver) -> None:
    async def line() -> None:
        receiver.statuses = [503]
        options = {"allow_private_urls": True, "webhook_again_seconds": 1.0}
        async with serve(**options) as served:
            wished = {"input": wish(), "webhook": receiver.url}
            await served.http.post(f"{BASE}/runsync", json=wished)
            await eventually(lambda: receiver.bodies)
        assert len(receiver.bodies) == 1
        async with serve(**options):
            await eventually(lambda: len(receiver.bodies) == 2)

    asyncio.run(line())


def test_a_receiver_that_does_not_answer_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/hook"
        begun = time.monotonic()
        with pytest.raises(InvalidMedia, match="Invalid webhook URL: the download took longer"):
            post(url, b"{}", FetchLimits(1000, 0.5, allow_private=True), Control())
        assert time.monotonic() - begun < 5


def test_receivers_that_do_not_answer_delay_no_webhooks_of_other_callers(
    serve: Serve, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt takes one second here, ten in production, and there are three."""
    monkeypatch.setattr("wan_engine.gateway.jobs.webhooks._ANSWER_SECONDS", 1.0)

    async def line() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/hook"
            refused = {"request": wish(duration=7)}
            async with serve(allow_private_urls=True) as served:
                many = [new(owner="eve", webhook=url, **refused) for _ in range(60)]
                await served.jobs.submit(*many)
                begun = time.monotonic()
                await served.jobs.submit(new(owner="bob", webhook=receiver.url, **refused))
                await eventually(lambda: receiver.bodies)
                assert time.monotonic() - begun < 4

    asyncio.run(line())


def test_a_webhook_that_cannot_be_built_does_not_stop_the_others(
    serve: Serve, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def line() -> None:
        async with serve(allow_private_urls=True) as served:
            refused = {"request": wish(duration=7), "webhook": receiver.url}
            (bad,) = await served.jobs.submit(new(**refused))
            await eventually(lambda: receiver.bodies)
            while await served.gateway.store.due_webhooks(2**60, 10):
                await asyncio.sleep(0.01)  # until its row is deleted
            # A row that this version of the gateway cannot read.
            await served.gateway.store.change(replace(bad, state="completed"), ("failed",))
            served.jobs._recent[bad.id] = replace(bad, state="completed")
            await served.jobs.submit(new(**refused))
            await eventually(lambda: len(receiver.bodies) == 2)

    asyncio.run(line())


def test_a_webhook_is_not_sent_to_a_private_address(serve: Serve, receiver: Receiver) -> None:
    """Not even if the address was unknown when the webhook was set, because it is a name."""

    async def line() -> None:
        async with serve() as served:
            (job,) = await served.jobs.submit(new(webhook=receiver.url))
            assert (await served.jobs.wait(job, 10)).state == "completed"

            async def given_up() -> bool:
                return await served.gateway.store.due_webhooks(2**60, 10) == []

            for _ in range(500):
                if await given_up():
                    break
                await asyncio.sleep(0.02)
            assert await given_up() and receiver.bodies == []
            metrics = (await served.http.get("/metrics")).text
            assert 'wan_webhooks_total{outcome="given up"} 1.0' in metrics

    asyncio.run(line())


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/hook",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0x7f000001:8080/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://0/",
        "http://012.0.0.1/",
        "http://10.0.0.1./",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[fd00:ec2::254]/",
        "http://[2002:7f00:1::]/",
        "http://[fe80::1%25eth0]/",
        "http://localhost/",
        "http://LOCALHOST./",
        "https://a.localhost/",
        "http://ip6-loopback./",
        "http://user:password@127.0.0.1/",
        "http://127%2e0.0.1/",
        "http://%31%32%37.1/",
    ],
)
def test_a_webhook_to_a_private_address_is_refused_when_it_is_set(shared: Shared, url: str) -> None:
    async def line() -> None:
        served = shared.served
        for operation in ("run", "runsync"):
            body = {"input": wish(), "webhook": url}
            answer = await served.http.post(f"{BASE}/{operation}", json=body)
            assert answer.status_code == 400 and '"webhook"' in answer.json()["error"]
            assert "127.0.0.1" not in answer.text

    shared.run(line())


@pytest.mark.parametrize(
    "url", ["https://example.com/hook", "http://8.8.8.8/", "http://134744072/", "http://10.example"]
)
def test_a_webhook_to_a_name_or_a_public_address_is_accepted(serve: Serve, url: str) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            body = {"input": wish(), "webhook": url}
            answer = await served.http.post(f"{BASE}/run", json=body)
            assert answer.status_code == 200, answer.text

    asyncio.run(line())


def test_private_webhooks_are_accepted_where_the_operator_allows_them(serve: Serve) -> None:
    async def line() -> None:
        async with serve(allow_private_urls=True) as served:
            served.backend.hold()
            body = {"input": wish(), "webhook": "http://127.1:9/hook"}
            assert (await served.http.post(f"{BASE}/run", json=body)).status_code == 200

    asyncio.run(line())


def test_a_receiver_that_does_not_answer_delays_no_other(serve: Serve, receiver: Receiver) -> None:
    async def line() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            silent_url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            async with serve(allow_private_urls=True) as served:
                hang = {"input": wish(duration=7), "webhook": silent_url}
                await served.http.post(f"{BASE}/run", json=hang)
                connection, _ = await asyncio.to_thread(silent.accept)
                with connection:  # this one is being delivered, for ten seconds
                    begun = time.monotonic()
                    for _ in range(12):  # more than are delivered at once
                        quick = {"input": wish(duration=7), "webhook": receiver.url}
                        await served.http.post(f"{BASE}/run", json=quick)
                    await eventually(lambda: len(receiver.bodies) == 12)
                    assert time.monotonic() - begun < 9

    asyncio.run(line())
