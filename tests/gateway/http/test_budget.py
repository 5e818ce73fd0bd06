"""Limits of bytes and seconds for a request, in every part of it, over real connections."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from benchmarks.services.gateway import INSTANT, free_port, until
from tests.gateway.conftest import Listening, Serve, gateway_process, wish
from tests.gateway.http.test_guard import ANN, BASE, BOB, KEYS, asked, bearer, said, status
from wan_engine.gateway.doors.runpod import door as runpod_door
from wan_engine.gateway.http import connection as connection_module
from wan_engine.gateway.http.budget import Connections, Deadline, Held, InFlight, Pace
from wan_engine.gateway.refusals import Refusal

DOORS = (runpod_door.door,)

Listen = Callable[..., Listening]
MB = 2**20


def connected(listening: Listening, stack: ExitStack, source: str = "127.0.0.1") -> socket.socket:
    host, port = listening.url.removeprefix("http://").split(":")
    address = (host, int(port))
    return stack.enter_context(
        socket.create_connection(address, timeout=10, source_address=(source, 0))
    )


def answer(connection: socket.socket) -> bytes:
    """Everything received until the other side closes the connection."""
    whole = b""
    with suppress(ConnectionError):
        while more := connection.recv(65_536):
            whole += more
    return whole


# --- seconds -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent", [b"G", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ", b"\r\n\r\n", b"\r\n\r\nG"]
)
def test_an_endless_head_is_408(listen: Listen, sent: bytes) -> None:
    with ExitStack() as stack:
        connection = connected(listen(head_seconds=0.3), stack)
        connection.sendall(sent)
        assert status(answer(connection)) == 408


def test_an_idle_connection_is_closed(listen: Listen) -> None:
    with ExitStack() as stack:
        assert answer(connected(listen(head_seconds=0.3), stack)) == b""


def test_an_endless_second_head_does_not_discard_the_first_answer(listen: Listen) -> None:
    listening = listen(head_seconds=0.2)
    listening.backend.hold()
    timer = threading.Timer(1, listening.backend.release)
    timer.start()
    body = json.dumps({"input": wish()}).encode()
    with ExitStack() as stack:
        connection = connected(listening, stack)
        head = f"POST {BASE}/runsync HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + body + b"GET /he")
        assert b'"status":"COMPLETED"' in answer(connection)
    timer.join()


def test_a_caller_that_does_not_read_its_answers_is_disconnected(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_UNREAD_SECONDS", 0.3)
    listening = listen(body_rate=1e9)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", int(listening.url.rpartition(":")[2])))
        connection.settimeout(10)
        with pytest.raises(ConnectionError):  # a timeout would be another error
            for _ in range(100_000):
                connection.sendall(asked("GET", "/openapi.json") * 4)


def test_a_second_head_has_the_same_time_as_the_first(listen: Listen) -> None:
    with ExitStack() as stack:
        connection = connected(listen(head_seconds=0.3), stack)
        connection.sendall(asked("GET", "/healthz") + b"GET /he")
        told = answer(connection)
        assert told.startswith(b"HTTP/1.1 200 ") and b"HTTP/1.1 408 " in told


@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("part", [b"", b'3\r\n{"a\r\n', b"0\r\nX-Trailer: "])
def test_a_body_that_stops_is_408_in_the_words_of_the_door(
    listen: Listen, framing: str, part: bytes
) -> None:
    with ExitStack() as stack:
        connection = connected(listen(head_seconds=0.3, api_keys=KEYS), stack)
        connection.sendall(asked("POST", f"{BASE}/run", framing, f"Authorization: {ANN}") + part)
        told = answer(connection)
        assert status(told) == 408 and b'"FAILED"' in told


def test_a_stopped_body_that_nobody_reads_ends_too(listen: Listen) -> None:
    with ExitStack() as stack:
        connection = connected(listen(head_seconds=0.3), stack)
        connection.sendall(asked("POST", "/healthz", "Content-Length: 9"))
        assert status(connection.recv(65_536)) == 405


def test_a_fast_start_does_not_allow_a_longer_pause() -> None:
    deadline = Deadline(Pace(head_seconds=10, body_rate=1000), now=0)
    deadline.extend(1_000_000, now=1)
    assert deadline.at == 11
    deadline.extend(500, now=10)
    assert deadline.at == 11.5  # half a second's worth
    deadline.wait(3)
    assert deadline.at == 14.5


# --- bytes ---------------------------------------------------------------------------------------


def test_trailers_count_with_the_head(listen: Listen) -> None:
    listening = listen()
    for path in ("/healthz", "/nobody", f"{BASE}/run"):
        head = asked("POST", path, "Transfer-Encoding: chunked") + b"0\r\n"
        for part in (b"x: " + b"a" * 70_000 + b"\r\n", b"x: y\r\n" * 12_000, b"x" * 70_000):
            with ExitStack() as stack:
                connection = connected(listening, stack)
                with suppress(ConnectionError):
                    connection.sendall(head + part)
                    for _ in range(100):
                        connection.sendall(part)
                answer(connection)  # the trailer that ends


def test_chunk_extensions_count_too(listen: Listen) -> None:
    with ExitStack() as stack:
        connection = connected(listen(), stack)
        connection.sendall(asked("POST", f"{BASE}/run", "Transfer-Encoding: chunked"))
        with suppress(ConnectionError):
            for _ in range(400):
                connection.sendall(b"1;" + b"e" * 1000 + b"\r\nx\r\n")
        told = answer(connection)
        assert status(told) in (0, 431)


def test_a_body_in_chunks_of_one_byte_is_accepted_with_its_trailers(listen: Listen) -> None:
    body = json.dumps({"input": wish(prompt="x" * 1000, duration=7)}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\nX-End: y\r\n\r\n"
    head = asked("POST", f"{BASE}/runsync", "Transfer-Encoding: chunked")
    listening = listen()
    assert status(said(listening.url, head + chunks)) == 400
    padded = b"1\r\n \r\n" * 60_000  # 360 kB, of which 300 are not the body
    assert status(said(listening.url, head + padded + chunks)) == 400


def test_a_trailer_does_not_become_a_header(listen: Listen) -> None:
    with ExitStack() as stack:
        connection = connected(listen(api_keys=KEYS), stack)
        head = asked("POST", f"{BASE}/run", "Transfer-Encoding: chunked")
        connection.sendall(head + f"0\r\nAuthorization: {ANN}\r\n\r\n".encode())
        assert status(connection.recv(65_536)) == 401


def test_a_hundred_headers_and_eight_pipelined_requests_are_accepted(listen: Listen) -> None:
    listening = listen()
    many = asked("GET", "/healthz", *(f"X-{number}: y" for number in range(200)))
    assert status(said(listening.url, many)) == 431
    with ExitStack() as stack:
        connection = connected(listening, stack)
        connection.sendall(asked("GET", "/healthz") * 1000)
        assert answer(connection).count(b"HTTP/1.1 200 ") < 20


def test_half_a_body_is_no_request(listen: Listen) -> None:
    """A caller that disconnects early has not sent a request."""
    listening = listen()
    body = json.dumps({"input": wish()}).encode()
    with ExitStack() as stack:
        connection = connected(listening, stack)
        head = asked("POST", f"{BASE}/run", "Transfer-Encoding: chunked")
        connection.sendall(head + b"%x\r\n%s\r\n" % (len(body), body))
        connection.shutdown(socket.SHUT_WR)
        answer(connection)
    health = httpx.get(f"{listening.url}{BASE}/health").json()["jobs"]
    assert health["inQueue"] == health["completed"] == health["inProgress"] == 0


def test_the_bytes_of_a_key_are_limited_and_others_are_served(listen: Listen) -> None:
    listening = listen(api_keys=KEYS, in_flight_key_bytes=3 * MB, in_flight_max_bytes=100 * MB)
    half = asked("POST", f"{BASE}/run", f"Content-Length: {2 * MB}", f"Authorization: {ANN}")
    with ExitStack() as stack:
        connections = [connected(listening, stack) for _ in range(2)]
        for connection in connections:
            connection.sendall(half + b"{")
        refused = next(told for told in map(_first, connections) if told)
        assert status(refused) == 429 and b"retry-after: 1" in refused.lower()
        body = {"input": wish(image="data:image/png;base64," + "A" * (2 * MB))}
        with httpx.Client(base_url=listening.url, headers=bearer(BOB)) as http:
            for _ in range(3):  # stored bytes no longer count
                assert http.post(f"{BASE}/run", json=body).status_code == 200


def _first(connection: socket.socket) -> bytes:
    connection.settimeout(1)
    try:
        return connection.recv(65_536)
    except TimeoutError:
        return b""


def test_the_bytes_of_all_keys_are_limited() -> None:
    flying = InFlight(most=100, most_of_owner=60)
    ann, bob, eve = (Held(flying, owner) for owner in ("ann", "bob", "eve"))
    ann.grow(60)
    bob.grow(30)
    with pytest.raises(Refusal) as raised:
        eve.grow(20)
    assert raised.value.status == 503
    with pytest.raises(Refusal) as raised:
        Held(flying, "ann").grow(1)
    assert raised.value.status == 429
    ann.release()
    ann.release()
    eve.grow(20)
    bob.release()
    eve.grow(1000)  # when it is the only one
    eve.release()
    assert flying.bytes == 0


@pytest.mark.parametrize("size", [1000, 3 * MB])
def test_a_large_body_is_read_like_a_small_one(serve: Serve, tmp_path: Path, size: int) -> None:
    async def line() -> None:
        async with serve(scratch_dir=tmp_path) as served:
            for body, right in (
                ({"input": wish(prompt="é\ud800", image="data:," + "A" * size)}, 200),
                ({"input": wish(duration=7), "x": ["A" * size, 1.5, None]}, 400),
            ):
                answer = await served.http.post(f"{BASE}/runsync", content=json.dumps(body))
                assert answer.status_code == right, answer.text
            for wrong in ('{"a": NaN}', '{"a": 1e999}', '{"a"', "\x00"):
                text = " " * size + wrong
                answer = await served.http.post(f"{BASE}/run", content=text)
                assert (answer.status_code, answer.json()["error"]) == (
                    400,
                    "The body is not valid JSON",
                )

    asyncio.run(line())


# --- connections ---------------------------------------------------------------------------------


def test_each_address_has_its_own_limit_of_connections(listen: Listen) -> None:
    listening = listen(connections_per_address=3)
    with ExitStack() as stack:
        for _ in range(3):
            connected(listening, stack).sendall(b"GET /")
        assert status(answer(connected(listening, stack))) == 429
        other = connected(listening, stack, "127.0.0.2")
        other.sendall(asked("GET", "/healthz"))
        assert status(other.recv(65_536)) == 200
    until(lambda: status(said(listening.url, asked("GET", "/healthz"))) == 200)


def test_proxies_have_no_limit_and_an_ipv6_network_is_one_address() -> None:
    connections = Connections(10, 1, ["10.0.0.0/8"])
    for address in ("10.0.0.1", "10.0.0.1", "2001:db8::1", "2001:db8::2", "::ffff:192.0.2.1"):
        connections.enter(address)
    assert connections.crowd("10.0.0.1") <= 1
    assert connections.crowd("2001:db8::9") == 2
    assert connections.crowd("192.0.2.1") == 1
    connections.leave("2001:db8::2")
    assert connections.crowd("2001:db8::1") == 1


def test_incomplete_heads_do_not_use_up_all_descriptors(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    port = free_port()
    with ExitStack() as stack:
        process = stack.enter_context(gateway_process(tmp_path, port, module=INSTANT))
        now = resource.prlimit(process.popen.pid, resource.RLIMIT_NOFILE)
        assert now == (hard, hard)
        listening = Listening(process.url, None, lambda: None)  # type: ignore[arg-type]
        for number in range(300):
            with suppress(OSError):
                connected(listening, stack, f"127.0.0.{3 + number % 6}").sendall(b"GET /")
        assert status(said(process.url, asked("GET", "/healthz"))) == 200
    log = (tmp_path / "gateway.log").read_text()
    assert "Traceback" not in log and "Too many open files" not in log
