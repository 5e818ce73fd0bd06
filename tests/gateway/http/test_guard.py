"""Keys, rates, sizes and origins: requests that are refused before a door sees them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import Listening, Serve, Shared, wish
from wan_engine.errors import ConfigurationError
from wan_engine.gateway.keys import Keys, RateLimit, digest, new_entry
from wan_engine.gateway.refusals import Refusal
from wan_engine.settings import Settings

BASE = "/v2/wan-2-6-i2v"
ANN, BOB = "wan_ann", "wan_bob"
KEYS = f"ann:{digest(ANN)},bob:{digest(BOB)}"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("header", [f"Bearer {ANN}", f"bearer  {ANN} ", ANN])
def test_a_key_is_accepted_with_and_without_bearer(serve: Serve, header: str) -> None:
    async def line() -> None:
        async with serve(api_keys=KEYS) as served:
            answer = await served.http.get(f"{BASE}/health", headers={"Authorization": header})
            assert answer.status_code == 200

    asyncio.run(line())


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wan_eve", "Basic YTpi", "wan_annx"])
def test_a_missing_or_wrong_key_is_401_on_every_route(serve: Serve, header: str | None) -> None:
    async def line() -> None:
        async with serve(api_keys=KEYS) as served:
            headers = {} if header is None else {"Authorization": header}
            for method, path in (
                ("GET", f"{BASE}/health"),
                ("POST", f"{BASE}/run"),
                ("GET", f"{BASE}/status/x"),
                ("GET", "/v2/nope"),
            ):
                answer = await served.http.request(method, path, headers=headers)
                assert answer.status_code == 401 and answer.json()["error"], path
                assert answer.headers["www-authenticate"] == "Bearer"
                if not header:
                    assert answer.json()["error"] == "no token provided", path

    asyncio.run(line())


def test_a_key_finds_its_own_jobs_only(serve: Serve) -> None:
    async def line() -> None:
        async with serve(api_keys=KEYS) as served:
            served.backend.hold()
            answer = await served.http.post(
                f"{BASE}/run", json={"input": wish()}, headers=bearer(ANN)
            )
            job_id = answer.json()["id"]
            for method, path in (
                ("GET", f"{BASE}/status/{job_id}"),
                ("GET", f"{BASE}/stream/{job_id}"),
                ("POST", f"{BASE}/cancel/{job_id}"),
                ("POST", f"{BASE}/retry/{job_id}"),
            ):
                answer = await served.http.request(method, path, headers=bearer(BOB))
                assert answer.status_code == 404, path
            purged = await served.http.post(f"{BASE}/purge-queue", headers=bearer(BOB))
            assert purged.json()["removed"] == 0
            mine = await served.http.get(f"{BASE}/status/{job_id}", headers=bearer(ANN))
            assert mine.json()["status"] in ("IN_QUEUE", "IN_PROGRESS")

    asyncio.run(line())


def test_routes_without_a_door_need_no_key(serve: Serve) -> None:
    async def line() -> None:
        async with serve(api_keys=KEYS) as served:
            for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
                assert (await served.http.get(path)).status_code == 200, path

    asyncio.run(line())


def test_keys_are_made_with_their_entry_and_only_the_hash_is_kept() -> None:
    key, entry = new_entry("ann")
    settings = Settings(api_keys=f"{entry}, bob:{digest(BOB)}")  # type: ignore[arg-type]
    keys = Keys(settings.api_keys)
    assert keys.owner(f"Bearer {key}") == "ann" and keys.owner(BOB) == "bob"
    assert key not in entry and key not in repr(settings) and digest(key) not in repr(settings)
    assert new_entry("ann")[0] != key
    with pytest.raises(ConfigurationError):
        new_entry("an:n")


@pytest.mark.parametrize("value", ["ann", "ann:abc", f"ann:{digest('a')},ann:{digest('b')}", ":"])
def test_wrong_keys_are_refused_with_the_name_of_their_variable(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("WAN_API_KEYS", value)
    with pytest.raises(ConfigurationError, match="WAN_API_KEYS"):
        Settings.load()


# --- paths, as they come over the wire ------------------------------------------------------------

DOOR_PATHS = (f"{BASE}/run", "/video/generations", "/v1/video/generations", "/api/events")
TAILS = ("%0A", "%0a", "%0D", "%0d%0A", "%00", "%7f", "%ff", "%C2%85", "%E2%80%A8", "%0A/", "/%0A")


def said(url: str, *parts: bytes) -> bytes:
    """The head of the answer to these bytes on a new connection; empty without an answer."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        with suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
        answer = b""
        with suppress(ConnectionError, TimeoutError):
            while b"\r\n\r\n" not in answer and (more := connection.recv(65_536)):
                answer += more
        return answer


def asked(method: str, target: str, *headers: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def status(answer: bytes) -> int:
    return int(answer.split()[1]) if answer else 0


def test_a_path_with_a_line_break_is_400_and_nobody_reads_its_body(
    listen: Callable[..., Listening],
) -> None:
    listening = listen(api_keys=KEYS)
    for path in (*DOOR_PATHS, "/healthz", "/metrics", "/", "/results/x", "/nobody"):
        for tail in TAILS:
            for method in ("GET", "POST", "HEAD", "OPTIONS"):
                # The body is never sent, so code that waits for it would not answer.
                head = asked(method, path + tail, "Content-Length: 1000000")
                assert status(said(listening.url, head)) == 400, (method, path, tail)


def test_a_door_needs_a_key_however_its_path_is_spelled(listen: Callable[..., Listening]) -> None:
    listening = listen(api_keys=KEYS)
    host = listening.url.removeprefix("http://")
    for path in DOOR_PATHS:
        doubled, part = "/" + path, path.rpartition("/")[2]
        for target, allowed in (
            (path, {401}),
            (path + "%2F", {401}),
            (path + "/", {401}),
            (path + "%20", {401, 404}),
            (path + ";x=1", {401, 404}),
            (path + ";%0A", {400}),
            (path + "?%0A", {401}),
            (path.replace(part, f"%{ord(part[0]):02x}{part[1:]}"), {401}),
            (path.upper(), {404, 401}),
            (doubled, {404}),
            (path + "/..%2f../healthz", {401}),
            (path + "%2500", {401, 404}),
            (f"http://{host}{path}", {400, 401}),
            (f"HTTP://LOCALHOST{path}", {401}),
            (f"http://elsewhere{path}", {400}),
            (f"http://localhost{path}%0A", {400}),
            ("http://localhost", {400}),
            ("*", {400}),
        ):
            for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT"):
                head = asked(method, target, "Content-Length: 1000000")
                assert status(said(listening.url, head)) in allowed, (method, target)


def test_unknown_paths_are_404_without_reading_the_body(listen: Callable[..., Listening]) -> None:
    listening = listen(api_keys=KEYS)
    for target in ("/nobody", "/results", "/v3/x/run", "/playground/", "/openapi.json/"):
        head = asked("POST", target, "Transfer-Encoding: chunked")
        assert status(said(listening.url, head)) == 404, target


def test_an_open_route_answers_before_the_body_arrives(listen: Callable[..., Listening]) -> None:
    listening = listen(api_keys=KEYS)
    for method, target, right in (
        ("GET", "/healthz", 200),
        ("POST", "/healthz", 405),
        ("GET", "/readyz", 200),
        ("PUT", "/metrics", 405),
        ("GET", "/results/x.mp4", 403),
    ):
        head = asked(method, target, "Content-Length: 400000000")
        assert status(said(listening.url, head)) == right, target


def test_every_route_of_the_application_is_open_or_a_door(serve: Serve) -> None:
    """Decided by its answer to a caller without a key."""

    async def line() -> None:
        open_paths = {"/healthz", "/readyz", "/metrics", "/results/{name}", "/openapi.json", "/"}
        open_paths.add("/playground/{given}/{name}")
        async with serve(api_keys=KEYS) as served:
            document = (await served.http.get("/openapi.json")).json()
            for path, operations in document["paths"].items():
                for method in operations:
                    answer = await served.http.request(method, path.replace("{", "").strip("}"))
                    assert (answer.status_code == 401) != (path in open_paths), path

    asyncio.run(line())


# --- rates ---------------------------------------------------------------------------------------


def test_each_key_has_its_own_rate() -> None:
    now = [0.0]
    rate = RateLimit(2, clock=lambda: now[0])
    for _ in range(20):  # ten seconds' worth
        rate.count("ann")
    with pytest.raises(Refusal) as raised:
        rate.count("ann")
    assert (raised.value.code, raised.value.retry_after_seconds) == ("rate_limited", 1)
    rate.count("bob")
    now[0] = 0.5
    rate.count("ann")
    with pytest.raises(Refusal):
        rate.count("ann")


def test_without_a_limit_nothing_is_counted() -> None:
    rate = RateLimit(0)
    for _ in range(1000):
        rate.count("ann")


def test_too_many_requests_are_429_with_a_time_to_retry(serve: Serve) -> None:
    async def line() -> None:
        async with serve(rate_limit=0.1) as served:
            assert (await served.http.get(f"{BASE}/health")).status_code == 200
            answer = await served.http.get(f"{BASE}/health")
            assert answer.status_code == 429 and answer.json()["error"] == "Too many requests"
            assert 9 <= int(answer.headers["retry-after"]) <= 11

    asyncio.run(line())


# --- bodies, over a real connection --------------------------------------------------------------


async def chunks(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 65536 + 1):
        yield b"x" * 65536


@pytest.mark.parametrize("chunked", [False, True])
def test_the_refusal_of_a_too_large_body_arrives(
    listen: Callable[..., Listening], chunked: bool
) -> None:
    listening = listen(request_max_bytes=1_000_000)

    async def line() -> None:
        async with httpx.AsyncClient(base_url=listening.url) as http:
            body: Any = chunks(5_000_000) if chunked else b"x" * 5_000_000
            answer = await http.post(f"{BASE}/run", content=body)
            assert answer.status_code == 413 and "0.95" in answer.json()["error"]
            assert (await http.get("/healthz")).status_code == 200

    asyncio.run(line())


def test_a_body_one_byte_too_large_in_its_last_chunk_is_answered_at_once(
    listen: Callable[..., Listening],
) -> None:
    listening = listen(request_max_bytes=100_000)

    async def body() -> AsyncIterator[bytes]:
        yield b"x" * 100_001

    async def line() -> None:
        async with httpx.AsyncClient(base_url=listening.url) as http:
            begun = time.monotonic()
            answer = await http.post(f"{BASE}/run", content=body())
            assert answer.status_code == 413 and time.monotonic() - begun < 2

    asyncio.run(line())


def test_expect_100_continue_is_refused_before_the_body_is_sent(
    listen: Callable[..., Listening],
) -> None:
    listening = listen()
    host, port = listening.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            f"POST {BASE}/run HTTP/1.1\r\nHost: {host}\r\nContent-Length: 900000000\r\n"
            "Expect: 100-continue\r\n\r\n".encode()
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("value", ["[]", "{}", "1", '""', '{"a":1}'])
def test_a_body_of_millions_of_values_is_refused_before_it_is_parsed(
    listen: Callable[..., Listening], value: str
) -> None:
    """Parsed, they take a hundred times their size, and seconds in which nobody gets an answer."""
    listening = listen()
    junk = ",".join([value] * (4_000_000 // len(value)))
    body = f'{{"input":{{"prompt":"x","image":"https://a.example/a.png","junk":[{junk}]}}}}'
    with httpx.Client(base_url=listening.url) as http:
        answer = http.post(f"{BASE}/run", content=body)
        assert (answer.status_code, answer.json()["error"]) == (400, "The body has too many values")


# --- pages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "127.0.0.2"}, 200),
        ({"Host": "LOCALHOST.:8000"}, 200),
        ({"Host": "wan.localhost"}, 200),
        ({"Host": "ip6-localhost"}, 403),  # an attacker's, unless a hosts file has it
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "evillocalhost"}, 403),
        ({"Host": "evil@localhost"}, 403),
        ({"Host": "localhost/evil"}, 403),
        ({"Host": "localhost:evil"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:9000"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
    ],
)
def test_without_keys_pages_of_other_origins_are_refused(
    shared: Shared, headers: dict[str, str], status: int
) -> None:
    async def line() -> None:
        served = shared.served
        answer = await served.http.get(f"{BASE}/health", headers=headers)
        assert answer.status_code == status

    shared.run(line())


HANDED_ON = (
    *("X-Forwarded-For", "Forwarded", "X-Real-IP", "x-forwarded-host", "CF-Connecting-IP"),
    *("Via", "CF-Ray", "X-Original-Forwarded-For", "X-Cluster-Client-IP", "Fastly-Client-IP"),
    *("X-Azure-ClientIP", "X-Envoy-External-Address", "ngrok-skip-browser-warning"),
    *("Tailscale-User-Login", "X-Amzn-Trace-Id"),
)


@pytest.mark.parametrize("name", HANDED_ON)
def test_without_keys_requests_through_a_proxy_are_refused(shared: Shared, name: str) -> None:
    async def line() -> None:
        for path in (f"{BASE}/health", "/api/events", "/video/generations", "/metrics", "/no"):
            answer = await shared.served.http.get(path, headers={name: "203.0.113.9"})
            assert answer.status_code == 403, path

    shared.run(line())


def test_with_keys_requests_through_a_proxy_are_accepted(serve: Serve) -> None:
    async def line() -> None:
        async with serve(api_keys=KEYS) as served:
            for name in HANDED_ON:
                headers = {**bearer(ANN), name: "203.0.113.9"}
                answer = await served.http.get(f"{BASE}/health", headers=headers)
                assert answer.status_code == 200, name

    asyncio.run(line())


def test_pages_of_named_origins_may_call(serve: Serve) -> None:
    async def line() -> None:
        origin = "https://app.example"
        ask = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        async with serve(cors_origins=origin, api_keys=KEYS) as served:
            answer = await served.http.options(f"{BASE}/run", headers=ask)
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == origin
            headers = {**bearer(ANN), "Origin": origin}
            answer = await served.http.get(f"{BASE}/health", headers=headers)
            assert answer.headers["access-control-allow-origin"] == origin
            other = {**ask, "Origin": "https://evil.example"}
            assert (await served.http.options(f"{BASE}/run", headers=other)).status_code == 400
        async with serve(api_keys=KEYS) as served:
            answer = await served.http.options(f"{BASE}/run", headers=ask)
            assert "access-control-allow-origin" not in answer.headers

    asyncio.run(line())
