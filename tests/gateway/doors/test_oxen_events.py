"""The stream `/api/events`, byte by byte as sent."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from benchmarks.services.gateway import until
from tests.gateway.conftest import Listening
from wan_engine.gateway.doors.oxen import door
from wan_engine.gateway.keys import new_entry

KEEP_ALIVE = b": keep-alive\n\n"
KEY, ENTRY = new_entry("ann")

Listen = Callable[..., Listening]


class Stream:
    """What a subscriber receives."""

    def __init__(self, connection: HTTPConnection, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        connection.request("GET", "/api/events", headers=headers)
        self._connection = connection
        self.answer = connection.getresponse()
        self._received = b""

    def until(self, part: bytes, seconds: float = 10) -> bytes:
        """Everything received up to and including `part`."""
        deadline = time.monotonic() + seconds
        while part not in self._received:
            assert self._connection.sock is not None
            self._connection.sock.settimeout(max(0.01, deadline - time.monotonic()))
            data = self.answer.read1(65536)
            assert data, "the server has ended the stream"
            self._received += data
        before, _, self._received = self._received.partition(part)
        return before + part

    def event(self) -> dict[str, Any]:
        """The data of the next event."""
        self.until(b"event: media_generation_completed\ndata: ")
        data = self.until(b"\n\n").removesuffix(b"\n\n")
        found: dict[str, Any] = json.loads(data)
        assert data == json.dumps(found, separators=(",", ":")).encode()
        return found


@contextmanager
def subscribed(url: str, key: str = KEY) -> Iterator[Stream]:
    with closing(HTTPConnection(urlsplit(url).netloc, timeout=10)) as connection:
        yield Stream(connection, key)


def ask(method: str, url: str, key: str = KEY, **options: Any) -> Any:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.request(method, url, headers=headers, **options).json()


def enqueue(url: str, key: str = KEY, **changes: Any) -> str:
    body = {
        "model": "wan-v2-6-image-to-video",
        "prompt": "An ox walks",
        "input_image": "https://example.com/ox.png",
        **changes,
    }
    answer = ask("POST", f"{url}/api/ai/queue", key, json=body)
    return str(answer["generations"][0]["generation_id"])


def ended(url: str, generation_id: str, key: str = KEY) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while True:
        found: dict[str, Any] = ask("GET", f"{url}/api/ai/queue/{generation_id}", key)
        if found["completed_at"] is not None:
            return found
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_subscriber_receives_the_end_of_a_generation(listen: Listen) -> None:
    here = listen(api_keys=ENTRY)
    with subscribed(here.url) as stream:
        assert stream.answer.status == 200
        assert stream.answer.headers["content-type"].startswith("text/event-stream")
        done = enqueue(here.url)
        assert stream.event() == {
            "generation_id": done,
            "status": "succeeded",
            "media_type": "video",
            "model": "wan-v2-6-image-to-video",
            "url": ended(here.url, done)["result_url"],
        }
        failed = enqueue(here.url, prompt="fail:content_policy:Content policy: prompt was flagged")
        assert stream.event() == {
            "generation_id": failed,
            "status": "failed",
            "media_type": "video",
            "error": "Content policy: prompt was flagged",
        }
        wrong = enqueue(here.url, duration=7)
        found = stream.event()
        assert (found["generation_id"], found["status"]) == (wrong, "failed")
        assert "duration: Input should be 5, 10 or 15" in found["error"]


def test_a_new_subscriber_receives_what_has_just_ended(listen: Listen) -> None:
    here = listen(api_keys=ENTRY)
    ids = [enqueue(here.url) for _ in range(3)]
    for one in ids:
        ended(here.url, one)
    with subscribed(here.url) as stream:
        assert [stream.event()["generation_id"] for _ in ids] == ids


def test_a_client_that_reads_in_blocks_sees_an_event_at_once(listen: Listen) -> None:
    here = listen(api_keys=ENTRY)
    ended(here.url, enqueue(here.url))
    with subscribed(here.url) as stream:
        stream.until(b'"status":"succeeded"')
        after = stream.until(b" \n\n", seconds=5)
        assert len(after) > 4096


def test_there_is_no_event_for_a_cancelled_generation_or_a_synchronous_request(
    listen: Listen,
) -> None:
    here = listen(api_keys=ENTRY)
    with subscribed(here.url) as stream:
        cancelled = enqueue(here.url, prompt="hang")
        ask("DELETE", f"{here.url}/api/ai/queue/{cancelled}")
        assert ended(here.url, cancelled)["status"] == "cancelled"
        body = {
            "model": "wan-v2-6-image-to-video",
            "prompt": "An ox walks",
            "input_image": "https://example.com/ox.png",
        }
        assert ask("POST", f"{here.url}/api/ai/videos/generate", json=body)["videos"]
        runpod = {"input": {"prompt": "x", "image": "https://example.com/a.png"}}
        ask("POST", f"{here.url}/v2/wan-2-6-i2v/runsync", json=runpod)
        done = enqueue(here.url)
        assert stream.event()["generation_id"] == done


def test_callers_receive_events_of_their_own_generations_only(listen: Listen) -> None:
    other, other_entry = new_entry("bob")
    here = listen(api_keys=f"{ENTRY},{other_entry}")
    ended(here.url, enqueue(here.url, other), other)
    with subscribed(here.url) as mine, subscribed(here.url, other) as bobs:
        theirs = bobs.event()["generation_id"]
        second = enqueue(here.url, other)
        ended(here.url, second, other)
        done = enqueue(here.url)
        assert mine.event()["generation_id"] == done
        assert bobs.event()["generation_id"] == second != theirs


def test_a_silent_stream_is_kept_alive_every_fifteen_seconds(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert door.KEEP_ALIVE_SECONDS == 15
    monkeypatch.setattr(door, "KEEP_ALIVE_SECONDS", 0.5)
    here = listen(api_keys=ENTRY)
    begun = time.monotonic()
    with subscribed(here.url) as stream:
        for count in (1, 2, 3):
            assert stream.until(KEEP_ALIVE, seconds=20) == KEEP_ALIVE
            assert time.monotonic() - begun > 0.4 * count


def test_one_caller_cannot_take_all_connections(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wan_engine.gateway.jobs.events._SUBSCRIBERS_OF_OWNER", 2)
    other, entry = new_entry("bob")
    url = listen(api_keys=f"{ENTRY},{entry}").url
    with subscribed(url), subscribed(url) as second:
        assert second.answer.status == 200
        for _ in range(3):
            with subscribed(url) as third:
                assert third.answer.status == 429
        with subscribed(url, other) as another:
            assert another.answer.status == 200

    def taken() -> bool:
        with subscribed(url) as again:
            return again.answer.status == 200

    until(taken)


def test_the_stream_ends_with_the_gateway(listen: Listen) -> None:
    here = listen(api_keys=ENTRY)
    with subscribed(here.url) as stream:
        here.stop()
        assert stream.answer.read1() == b""
