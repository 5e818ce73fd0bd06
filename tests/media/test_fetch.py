"""`fetch` with real sockets on this machine. Only the resolver is replaced."""

from __future__ import annotations

import base64
import datetime
import gc
import gzip
import importlib
import os
import random
import socket
import ssl
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_engine.control import Control
from wan_engine.errors import Cancelled, DeadlineExceeded, InvalidMedia

fetching = importlib.import_module("wan_engine.media.fetch")
FetchLimits = fetching.FetchLimits

MIB = 2**20
LOCAL = FetchLimits(MIB, 5, allow_private=True)
STRICT = FetchLimits(MIB, 5)
SHORT = FetchLimits(MIB, 0.6, allow_private=True)
PUBLIC = "127.0.0.2"  # stands for a public address where a test says so
TOO_LONG = "the download took longer than 0.6 seconds"
NOT_PUBLIC = "the address is not public"
CUT_OFF = "the connection was closed before the end of the file"
fuzz = settings(max_examples=150, deadline=None, database=None)

Route = bytes | Callable[[socket.socket], None]
real_getaddrinfo = socket.getaddrinfo


class Server:
    """Answers `GET path` with `routes[path]`: bytes, or a function that uses the socket as it likes
    until `over` is set."""

    def __init__(self, host: str, context: ssl.SSLContext | None = None) -> None:
        self.routes: dict[str, Route] = {}
        self.requests: list[bytes] = []
        self.connections = 0
        self.over = threading.Event()
        self._context = context
        self._threads: list[threading.Thread] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://{host}:{self.port}"
        self._start(self._accept)

    def _start(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._start(lambda connection=connection: self._serve(connection))

    def _serve(self, connection: socket.socket) -> None:
        with ExitStack() as stack:
            stack.enter_context(suppress(OSError))
            stack.enter_context(connection)
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
                stack.enter_context(connection)
            request = b""
            while b"\r\n\r\n" not in request:
                piece = connection.recv(65536)
                if not piece:
                    return
                request += piece
            self.requests.append(request)
            route = self.routes.get(request.split()[1].decode(), http(b"", "404 Not Found"))
            if callable(route):
                route(connection)
            else:
                connection.sendall(route)

    def close(self) -> None:
        self.over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)


def http(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    fields = {"Content_Length": str(len(body))} | headers
    lines = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in fields.items() if v)
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return http(b"", status, Location=location)


def chunked(*chunks: bytes) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return http(status="200 OK", Content_Length="", Transfer_Encoding="chunked") + body


@contextmanager
def serving(host: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(host, context)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


Names = dict[str, list[str] | Callable[[], list[str]]]


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """The resolver's table. Other names do not exist; numeric addresses go to the system's
    resolver."""
    table: Names = {}

    def getaddrinfo(host: str, port: object, *_: object, **__: object) -> list[object]:
        if host not in table:
            flags = socket.AI_NUMERICHOST
            return list(real_getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags))
        entry = table[host]
        ips = entry() if callable(entry) else entry
        return [(0, socket.SOCK_STREAM, 6, "", (ip, 0)) for ip in ips]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return table


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server whose address counts as public. No other address of this machine does."""
    judge = fetching.is_public_address
    monkeypatch.setattr(fetching, "is_public_address", lambda ip: ip == PUBLIC or judge(ip))
    with serving(PUBLIC) as server:
        yield server


def fetch(url: str, limits: object = LOCAL, control: Control | None = None) -> bytes:
    return fetching.fetch(url, "image", limits, control or Control())


def refusal(url: str, limits: object = LOCAL) -> str:
    with pytest.raises(InvalidMedia) as caught:
        fetch(url, limits)
    assert caught.value.field == "image"
    assert "127." not in str(caught.value) and "http:" not in str(caught.value)
    return caught.value.why


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_AGAIN_SECONDS", (0.0, 0.0))


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """Imports the SDK first, which takes longer than some limits below."""
    fetch("data:,x")
    assert not fetching.is_public_address("127.0.0.1")


# --- downloads -------------------------------------------------------------------------------


def test_body_and_request_are_as_expected(server: Server) -> None:
    server.routes["/a%20b?c=d"] = http(b"body")
    assert fetch(f"{server.url}/a b?c=d") == b"body"
    request = server.requests[0].decode()
    assert f"Host: 127.0.0.1:{server.port}\r\n" in request
    assert "User-Agent: wan-engine\r\n" in request
    assert "Accept-Encoding: identity\r\n" in request


def test_ipv6_works() -> None:
    with serving("::1") as server:
        server.routes["/"] = http(b"six")
        assert fetch(f"http://[::1]:{server.port}/") == b"six"


def test_proxy_variables_of_the_environment_are_ignored(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", "true")
    server.routes["/"] = http(b"direct")
    assert fetch(server.url) == b"direct"
    assert refusal(server.url, STRICT) == NOT_PUBLIC


@pytest.mark.parametrize("status", ["301 M", "302 F", "303 S", "307 T", "308 P"])
def test_redirects_are_followed(server: Server, status: str) -> None:
    server.routes |= {
        "/": redirect("/one", status),
        "/one": redirect("two?x=1", status),
        "/two?x=1": redirect(f"{server.url}/b%C3%A4r", status),
        "/b%C3%A4r": redirect("/end/ä", status),
        "/end/%C3%A4": http(b"end"),
    }
    assert fetch(server.url) == b"end"


def test_redirects_are_counted(server: Server) -> None:
    server.routes |= {f"/{n}": redirect(f"/{n + 1}") for n in range(6)}
    server.routes["/6"] = http(b"end")
    assert fetch(f"{server.url}/1") == b"end"
    assert refusal(f"{server.url}/0") == "too many redirects"


def test_the_next_address_is_tried(server: Server, names: Names) -> None:
    server.routes["/"] = http(b"second")
    names["media.test"] = ["127.0.0.9", "127.0.0.1"]
    assert fetch(f"http://media.test:{server.port}/") == b"second"
    assert f"Host: media.test:{server.port}\r\n".encode() in server.requests[0]


def test_chunked_and_gzip_bodies_are_read(server: Server) -> None:
    body = os.urandom(300_000)
    packed = gzip.compress(body)
    server.routes["/chunked"] = chunked(body[:7], body[7:200_000], body[200_000:], b"")
    server.routes["/gzip"] = http(packed, Content_Encoding="gzip")
    server.routes["/close"] = http(body, Content_Length="")
    assert fetch(f"{server.url}/chunked") == fetch(f"{server.url}/gzip") == body
    assert fetch(f"{server.url}/close") == body


# --- faults of the server --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (http(b"no", "404 Not Found"), "the server answered 404"),
        (http(b"no", "500 Oh"), "the server answered 500"),
        (http(b"", "204 No Content"), "the server answered 204"),
        (http(b"", "302 Found"), "the server answered 302"),
        (http(b""), "the file is empty"),
        (http(b"", Content_Length=""), "the file is empty"),
        (chunked(b""), "the file is empty"),
        (http(b"abc", Content_Length="9"), CUT_OFF),
        (chunked(b"abc"), CUT_OFF),
        (chunked() + b"zz\r\nabc", CUT_OFF),
        (http(b"abc", Content_Encoding="gzip"), "the server's answer could not be decoded"),
        (b"", "the connection failed"),
        (b"SSH-2.0-x\r\n", "the connection failed"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 300, "the connection failed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\nab", "the connection failed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n",
         "the file is larger than 1 MB"),
        (redirect("http://[/"), "the URL is not valid"),
        (redirect("http://h:99999/"), "the URL is not valid"),
    ],
)  # fmt: skip
def test_bad_answers_are_refused(server: Server, answer: bytes, why: str) -> None:
    server.routes["/"] = answer
    assert refusal(server.url) == why


def test_a_refused_connection_is_a_failure(names: Names) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert refusal(f"http://127.0.0.1:{port}/") == "the connection failed"
    names["media.test"] = ["127.0.0.1", "127.0.0.3", "::1"]
    assert refusal(f"http://media.test:{port}/") == "the connection failed"


def in_turn(*answers: bytes) -> Callable[[socket.socket], None]:
    """A route that gives another answer each time."""
    left = iter(answers)
    return lambda connection: connection.sendall(next(left))


@pytest.mark.parametrize(
    "broken",
    [
        http(b"no", "503 Busy"), http(b"no", "429 Later"), http(b"no", "500 Oh"), b"",
        http(b"abc", Content_Length="9"), chunked(b"abc")[:-5],
    ],
)  # fmt: skip
def test_temporary_failures_are_tried_again(server: Server, broken: bytes) -> None:
    server.routes["/"] = in_turn(broken, broken, http(b"at last"))
    assert fetch(server.url) == b"at last" and server.connections == 3
    server.routes["/"] = in_turn(broken, broken, broken, http(b"too late"))
    refusal(server.url)
    assert server.connections == 6


@pytest.mark.parametrize("status", ["404 Not Found", "403 No", "410 Gone", "401 Who", "501 What"])
def test_permanent_failures_are_tried_once(server: Server, status: str) -> None:
    server.routes["/"] = http(b"no", status)
    refusal(server.url)
    assert server.connections == 1


def test_a_cancel_ends_the_wait_before_a_retry(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_AGAIN_SECONDS", (60.0,))
    server.routes["/"] = http(b"no", "503 Busy")
    control = Control()
    threading.Timer(0.2, control.cancel).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        fetch(server.url, control=control)
    assert time.monotonic() - started < 2


def test_the_wait_before_a_retry_counts_against_the_time_limit(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_AGAIN_SECONDS", (60.0,))
    server.routes["/"] = http(b"no", "503 Busy")
    limits = FetchLimits(max_bytes=100, seconds=0.3, allow_private=True)
    assert refusal(server.url, limits) == "the download took longer than 0.3 seconds"


def test_the_connection_is_closed_where_urllib3_leaves_it_open(server: Server) -> None:
    server.routes["/"] = b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\nab"
    assert refusal(server.url) == "the connection failed"
    gc.collect()  # an open socket would warn here, and warnings are errors


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield lambda: tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def packed(size: int, times: int) -> Route:
    """A body of `size` zeros, packed `times` times."""
    body = bytes(size)
    for _ in range(times):
        body = gzip.compress(body, 1)
    return http(body, Content_Encoding=", ".join(["gzip"] * times))


def flood(head: bytes, piece: bytes = bytes(MIB), times: int = 64) -> Route:
    def run(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(times):
            connection.sendall(piece)

    return run


CHUNK = b"400\r\n" + bytes(1024) + b"\r\n"


@pytest.mark.parametrize(
    "route",
    [
        pytest.param(lambda: flood(http(Content_Length="")), id="no length"),
        pytest.param(lambda: flood(http(Content_Length=str(64 * MIB))), id="declared"),
        pytest.param(lambda: flood(chunked(), CHUNK, 2048), id="chunked"),
        pytest.param(
            lambda: flood(http(Content_Length="9", Transfer_Encoding="chunked"), CHUNK, 2048),
            id="lying length",
        ),
        pytest.param(lambda: packed(64 * MIB, 1), id="gzip bomb"),
        pytest.param(lambda: packed(256 * MIB, 2), id="gzip in gzip"),
    ],
)
def test_a_body_over_the_cap_is_refused(server: Server, route: Callable[[], Route]) -> None:
    server.routes["/"] = route()
    with peak_memory() as peak:
        assert refusal(server.url) == "the file is larger than 1 MB"
        assert peak() < 8 * MIB


def test_a_declared_length_over_the_cap_is_refused_before_the_body(server: Server) -> None:
    server.routes["/"] = lambda connection: (
        connection.sendall(http(Content_Length=str(20 * MIB + 1))),
        server.over.wait(5),
    )  # fmt: skip
    limits = FetchLimits(20 * MIB, 5, allow_private=True)
    assert refusal(server.url, limits) == "the file is larger than 20 MB"


def test_the_cap_is_exact(server: Server) -> None:
    server.routes["/"] = http(bytes(1000), Content_Length="")
    assert len(fetch(server.url, FetchLimits(1000, 5, allow_private=True))) == 1000
    assert "larger" in refusal(server.url, FetchLimits(999, 5, allow_private=True))


def test_a_negative_chunk_size_does_not_fill_the_memory(server: Server) -> None:
    server.routes["/"] = flood(chunked() + b"-1\r\n")
    with peak_memory() as peak:
        assert refusal(server.url) == CUT_OFF
        assert peak() < 8 * MIB


# --- time limits -----------------------------------------------------------------------------


def drip(server: Server, head: bytes, piece: bytes) -> Route:
    def run(connection: socket.socket) -> None:
        connection.sendall(head)
        while not server.over.wait(0.05):
            connection.sendall(piece)

    return run


def fill(listener: socket.socket, stack: ExitStack) -> None:
    """Fill the listener's queue, so that it silently drops the next connection."""
    for _ in range(4):
        filler = stack.enter_context(socket.socket())
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())


@contextmanager
def stuck(kind: str, names: Names) -> Iterator[str]:
    """The URL of a download that never ends."""
    with ExitStack() as stack:
        server = stack.enter_context(serving())
        url = server.url
        server.routes["/"] = {
            "silence": drip(server, b"", b""),
            "headers": drip(server, b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
            "headers of a 404": drip(server, b"HTTP/1.1 404 No\r\n", b"a: b\r\n"),
            "header": drip(server, b"HTTP/1.1 200 OK\r\na: ", b"b"),
            "continue": drip(server, b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
            "body": drip(server, http(Content_Length="1000000"), b"x"),
            "endless body": drip(server, http(Content_Length=""), b"x"),
            "chunks": drip(server, chunked(), b"1\r\nx\r\n"),
            "chunk size": drip(server, chunked(), b"0"),
            "trailers": drip(server, chunked(b"x", b"")[:-2], b"a: b\r\n"),
            "redirects": lambda c: (server.over.wait(0.1), c.sendall(redirect("/"))),
        }.get(kind, b"")
        if kind == "names":
            hang = threading.Event()
            stack.callback(hang.set)
            names["slow.test"] = lambda: [str(hang.wait(10))]
            url = "http://slow.test/"
        if kind in ("connect", "handshake"):
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
            if kind == "connect":
                fill(listener, stack)
        yield url


KINDS = [
    *("names", "connect", "handshake", "silence", "headers", "header", "continue", "body"),
    *("headers of a 404", "endless body", "chunks", "chunk size", "trailers", "redirects"),
]


def ends(names: Names, limits: object, cancel_after: float | None = None) -> dict[str, str]:
    """The error of each kind of download, and whether it took much longer than allowed."""

    def run(kind: str) -> str:
        control = Control()
        with stuck(kind, names) as url:
            timer = threading.Timer(cancel_after or 60, control.cancel)
            timer.start()
            started = time.monotonic()
            try:
                fetch(url, limits, control)
            except (InvalidMedia, Cancelled) as error:
                spent = time.monotonic() - started - (cancel_after or limits.seconds)
                return f"{error} {'on time' if -0.05 < spent < 0.3 else spent}"
            finally:
                timer.cancel()
                timer.join()
        return "it ended well"

    with ThreadPoolExecutor(len(KINDS)) as pool:
        return dict(zip(KINDS, pool.map(run, KINDS), strict=True))


def test_every_download_ends_at_its_deadline(names: Names) -> None:
    assert ends(names, SHORT) == dict.fromkeys(KINDS, f"Invalid image URL: {TOO_LONG} on time")


def test_every_download_ends_on_a_cancel(names: Names) -> None:
    expected = dict.fromkeys(KINDS, "The job was cancelled on time")
    assert ends(names, LOCAL, cancel_after=0.2) == expected


CUTS = 240


def test_a_cut_at_any_moment_is_reported_with_its_reason(
    names: Names, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries fail in different ways when a connection is closed below them: while connecting, in
    the handshake, while sending, in headers and in bodies."""
    monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(certificate))
    names["media.test"] = ["127.0.0.1"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    dice = random.Random(7)

    def run(place: tuple[int, str]) -> str:
        number, url = place
        control = Control()
        seconds = dice.uniform(0, 0.25)
        late = number % 3 == 1
        limits = FetchLimits(MIB, seconds if late else 20, allow_private=True)
        timer = threading.Timer(60 if late else seconds, control.cancel)
        timer.start()
        try:
            if number % 2:
                return f"answered {fetching.post(url, b'x' * 3 * MIB, limits, control)}"
            fetch(url, limits, control)
        except InvalidMedia as error:
            return "late" if late and "took longer than" in error.why else error.why
        except Cancelled:
            return "late" if late else "cancelled"
        except Exception as error:  # noqa: BLE001 - what this test looks for
            return repr(error)
        finally:
            timer.cancel()
            timer.join()
        return "it ended well"

    with ExitStack() as stack:
        kinds = ("connect", "handshake", "silence", "headers", "endless body", "redirects")
        urls = [stack.enter_context(stuck(kind, names)) for kind in kinds]
        urls.append(urls[0].replace("https", "http"))
        secure = stack.enter_context(serving(context=context))
        secure.routes["/"] = drip(secure, http(Content_Length="1000000"), b"x")
        urls.append(f"https://media.test:{secure.port}/")
        places = [(number, urls[number % len(urls)]) for number in range(CUTS)]
        with ThreadPoolExecutor(12) as pool:
            ends = Counter(pool.map(run, places))
    # A POST is complete with the status, whatever follows.
    assert (
        {"late", "cancelled"} <= set(ends) <= {"late", "cancelled", "answered 200", "answered 302"}
    )
    assert ends.total() == CUTS


def test_a_silent_address_leaves_time_for_the_next(server: Server, names: Names) -> None:
    server.routes["/"] = http(b"second")
    names["media.test"] = ["127.0.0.9", "127.0.0.1"]
    with ExitStack() as stack:
        listener = socket.create_server(("127.0.0.9", server.port), backlog=0)
        fill(stack.enter_context(listener), stack)
        assert fetch(f"http://media.test:{server.port}/", SHORT) == b"second"


def test_a_cut_line_opens_no_more_connections(server: Server) -> None:
    line = fetching._Line(5, Control())
    line.cut()
    with pytest.raises(ConnectionAbortedError):
        line.connect("127.0.0.1", server.port, 5)


def test_the_deadline_of_the_job_applies(names: Names) -> None:
    with stuck("body", names) as url, pytest.raises(DeadlineExceeded):
        fetch(url, LOCAL, Control(deadline_seconds=0.2))


def test_a_cancelled_job_fetches_nothing(server: Server) -> None:
    control = Control()
    control.cancel()
    for url in (server.url, "data:,x"):
        with pytest.raises(Cancelled):
            fetch(url, LOCAL, control)
    assert server.connections == 0


# --- addresses -------------------------------------------------------------------------------


NOT_PUBLIC_IPS = """
    127.0.0.1 10.0.0.1 172.16.0.1 192.168.0.1 169.254.169.254 100.64.0.1 100.100.100.200 0.0.0.0
    192.0.0.192 192.88.99.1 168.63.129.16 198.18.0.1 192.0.2.1 224.0.0.1 240.0.0.1 255.255.255.255
    ::1 :: ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:127.0.0.1 fe80::1 fc00::1
    fe80::1%lo 2606:4700::1%lo fec0::1 feff::1 ff02::1 100::1 2001::1 2001:0:4136:e378::1
    2001:10::1 2001:20::1 2001:db8::1 3fff::1 3ffe::1 2002:7f00:1:: 2002:808:808::1
    64:ff9b::127.0.0.1 64:ff9b::8.8.8.8 64:ff9b:1::1 5f00::1 4000::1 fd00:ec2::254
    1.1.1 nonsense 08.8.8.8 8.8.8.8/32
"""


@pytest.mark.parametrize("ip", NOT_PUBLIC_IPS.split())
def test_private_addresses_are_not_public(ip: str) -> None:
    assert not fetching.is_public_address(ip)


@pytest.mark.parametrize("ip", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450::8a"])
def test_public_addresses_are_public(ip: str) -> None:
    assert fetching.is_public_address(ip)


PRIVATE_HOSTS = """
    127.0.0.1 127.1 0 0.0.0.0 2130706433 0177.0.0.1 0x7f.1 0x7f000001 017700000001
    [::1] [::] [::ffff:127.0.0.1] [::ffff:7f00:1] [::127.0.0.1] [2002:7f00:1::] [fec0::1]
    [64:ff9b::7f00:1] [64:ff9b::127.0.0.1] 169.254.169.254
    public.test@127.0.0.1 user:pass@127.0.0.1 public.test:80@127.0.0.1 public.test%40@127.0.0.1
    LOCALHOST localhost. mixed.test private.test
"""


@pytest.mark.parametrize("host", PRIVATE_HOSTS.split())
def test_private_hosts_are_not_contacted(host: str, names: Names) -> None:
    names |= {"localhost": ["127.0.0.1"], "localhost.": ["127.0.0.1"]}
    names |= {"private.test": ["127.0.0.1"], "mixed.test": ["8.8.8.8", "127.0.0.1"]}
    with serving("0.0.0.0") as four, serving("::") as six:
        for victim in (four, six):
            assert refusal(f"http://{host}:{victim.port}/", STRICT) == NOT_PUBLIC
            assert victim.connections == 0


@pytest.mark.parametrize(
    "form",
    [
        *("http://127.0.0.1:{}\\@public.test/", "http://public.test\\@127.0.0.1:{}/"),
        *("http://127.0.0.1:{}#@public.test/", "http://127.0.0.1:{}?@public.test/"),
        *("http://127.0.0.1\0:{}/", "http://127.0.0.1%00:{}/", "http://\x01127.0.0.1:{}/"),
        *("http://127.0.0.1 :{}/", "http:// 127.0.0.1:{}/", "http:127.0.0.1:{}", "http:/127.0.0.1"),
        *("http://[::1:{}", "http://::1:{}/", "http://[127.0.0.1]:{}/", "http://[::1]x:{}/"),
        *("http://\t127.0.0.1:{}/", "ht\ntp://127.0.0.1:{}/", "http://127.0.0.1:{}\r\nX: y/"),
        *("http://127.0.0.1:-{}/", "http://127.0.0.1:{}0000/", "http://127.0.0.1:٣{}/"),
        *("http://", "http:", "http:///", "https://?", "http://#", "http://@/", "http://:{}/"),
        *("http://.:{}/", "http://../", "http://*/", "http://%zz/", "http://\ud800/", "http://xn--/"),
        *("http://" + "a" * 70 + "/", "http://" + "a." * 200 + "/", "http://a..b/", "http://ß\u200d/"),
        *("http://①②⑦.⓪.⓪.①:{}/", "http://\uff11\uff12\uff17.0.0.1:{}/", "http://\uff4cocalhost:{}/"),
        *("http://127。0。0。1:{}/", "http://127.0.0.1.:{}/", "http://[::1%25lo]:{}/"),
        *("http://public.test/", "HTTP://PUBLIC.TEST:{}", "http://public.test./", "http://a b/"),
    ],
)  # fmt: skip
def test_weird_urls_are_only_invalid(form: str, names: Names) -> None:
    names["localhost"] = ["127.0.0.1"]
    with serving("0.0.0.0") as victim:
        refusal(form.replace("{}", str(victim.port)), STRICT)
        assert victim.connections == 0


@fuzz
@given(st.text(max_size=40), st.sampled_from(["http://", "https://", "http://a.test", "HTTP:", ""]))
def test_garbage_urls_are_only_invalid(garbage: str, start: str) -> None:
    with pytest.raises(InvalidMedia):
        fetch(start + garbage, STRICT)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "gopher://127.0.0.1/", "ftp://127.0.0.1/a", "httpx://a/", "js:1"],
)
def test_other_schemes_are_refused(server: Server, url: str) -> None:
    server.routes["/"] = redirect(url)
    why = "only http, https and data URIs are allowed"
    assert refusal(url) == refusal(server.url) == why


def test_a_redirect_to_a_data_uri_is_refused(server: Server) -> None:
    server.routes["/"] = redirect("data:,x")
    assert refusal(server.url) == "only http, https and data URIs are allowed"


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "[::1]", "2130706433", "in.test"])
def test_a_redirect_to_a_private_host_is_refused(public: Server, names: Names, host: str) -> None:
    names["in.test"] = ["127.0.0.1"]
    with serving("127.0.0.1") as victim:
        public.routes["/"] = redirect(f"http://{host}:{victim.port}/")
        assert refusal(public.url, STRICT) == NOT_PUBLIC
        assert (public.connections, victim.connections) == (1, 0)


def test_dns_rebinding_is_refused(public: Server, names: Names) -> None:
    answers = iter([[PUBLIC], ["127.0.0.1"]])
    names["rebind.test"] = lambda: next(answers)
    public.routes["/"] = http(b"pinned")
    assert fetch(f"http://rebind.test:{public.port}/", STRICT) == b"pinned"
    assert next(answers) == ["127.0.0.1"], "asked once only"


def test_an_unresolvable_host_is_a_failure(names: Names) -> None:
    names["none.test"] = list
    for host in ("missing.test", "none.test", "a" * 70):
        assert refusal(f"http://{host}/") == "the host name could not be resolved"


# --- TLS -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for media.test, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "media.test")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("media.test")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path = tmp_path_factory.mktemp("tls") / "media.test.pem"
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(private + built.public_bytes(pem))
    return path


def test_tls_certificates_are_checked(
    certificate: Path, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    names |= {"media.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}
    with serving(context=context) as server:
        url = f"https://media.test:{server.port}/"
        server.routes["/"] = http(b"secret", Content_Length="")
        assert refusal(url) == "the secure connection failed"
        monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(certificate))
        assert fetch(url) == b"secret"
        assert refusal(url.replace("media", "other")) == "the secure connection failed"
        server.routes["/"] = drip(server, http(Content_Length="99999"), b"x")
        assert refusal(url, SHORT) == TOO_LONG


# --- data URIs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "data"),
    [
        ("data:image/png;base64,aGVsbG8=", b"hello"),
        ("DATA:;BASE64,aGVsbG8", b"hello"),
        ("data:image/png;name=a.png; base64 ,aGVs\r\n bG8=\t", b"hello"),
        ("data:x;base64,%61GVsbG8%3D", b"hello"),
        ("data:;base64,-_-_", b"\xfb\xff\xbf"),
        ("data:;base64,+/+/", b"\xfb\xff\xbf"),
        ("data:,a%20b%FFc", b"a b\xffc"),
        ("data:text/plain,a,b", b"a,b"),
        ("data:base64,aGVsbG8=", b"aGVsbG8="),
        ("data:,ä", "ä".encode()),
    ],
)
def test_data_uris_are_decoded(uri: str, data: bytes) -> None:
    assert fetch(uri) == data


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("data:", "the data URI is not valid"),
        ("data:;base64", "the data URI is not valid"),
        ("data:,\ud800", "the data URI is not valid"),
        ("data:,", "the file is empty"),
        ("data:;base64,", "the file is empty"),
        ("data:;base64,====", "the data URI is not valid base64"),
        ("data:;base64,YQ===", "the data URI is not valid base64"),
        ("data:;base64,Y", "the data URI is not valid base64"),
        ("data:;base64,YQ==YQ==", "the data URI is not valid base64"),
        ("data:;base64,Y!Q=", "the data URI is not valid base64"),
        ("data:;base64,aGVsbG8ä", "the data URI is not valid base64"),
    ],
)
def test_bad_data_uris_are_refused(uri: str, why: str) -> None:
    assert refusal(uri) == why


def test_data_uris_have_the_cap() -> None:
    def spell(data: bytes) -> list[str]:
        plain = base64.b64encode(data)
        wrapped = base64.encodebytes(data)
        twice = "".join(f"%{byte:02x}" for byte in plain)
        percent = "".join(f"%{byte:02x}" for byte in data)
        texts = [f"data:;base64,{text.decode()}" for text in (plain, wrapped)]
        return [*texts, f"data:;base64,{twice}", f"data:,{percent}"]

    for size in (1, 2, 3, 100, 101, 102):
        limits = FetchLimits(size, 5)
        assert [fetch(uri, limits) for uri in spell(bytes(size))] == [bytes(size)] * 4
        for uri in spell(bytes(size + 1)):
            assert refusal(uri, limits).startswith("the file is larger than ")


def test_a_too_large_data_uri_is_not_decoded() -> None:
    uri = "data:;base64," + "A" * (32 * MIB)
    with peak_memory() as peak:
        assert refusal(uri) == "the file is larger than 1 MB"
        assert peak() < 34 * MIB  # the payload, cut from the URI


def test_percent_encoding_does_not_fill_the_memory() -> None:
    data = "ab%41" * 200_000
    with peak_memory() as peak:
        assert fetch(f"data:,{data}") == b"abA" * 200_000
        assert peak() < 8 * MIB


@fuzz
@given(st.text("%0aF", min_size=1, max_size=60), st.integers(3, 20))
def test_percent_decoding_works_by_blocks(text: str, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, "_CHUNK_BYTES", block)
        assert fetch(f"data:,{text}") == unquote_to_bytes(text)


@fuzz
@given(st.binary(min_size=1, max_size=200))
def test_data_uris_round_trip(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.bin"
    path.write_bytes(data)
    assert fetch(fetching.data_uri(path)) == data


@fuzz
@given(st.one_of(st.text(), st.text("AZaz09+/-_= \n%,;"), st.text().map(lambda t: f";base64,{t}")))
def test_garbage_data_uris_are_only_invalid(garbage: str) -> None:
    with suppress(InvalidMedia):
        assert fetch("data:" + garbage)


# --- clean-up --------------------------------------------------------------------------------


def test_no_descriptor_is_leaked(server: Server, names: Names) -> None:
    server.routes |= {"/ok": http(b"x"), "/hop": redirect("/ok"), "/short": chunked(b"x")}
    names["media.test"] = ["127.0.0.9", "127.0.0.1"]

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    def some_fetches() -> None:
        fetch(f"http://media.test:{server.port}/ok")
        fetch(f"{server.url}/hop")
        refusal(f"{server.url}/short")
        refusal(f"{server.url}/missing")
        refusal(f"http://127.0.0.9:{server.port}/")

    some_fetches()
    before = descriptors()
    for _ in range(10):
        some_fetches()
    limit = time.monotonic() + 2
    while descriptors() > before and time.monotonic() < limit:  # the server closes its ends
        time.sleep(0.01)
    assert descriptors() < before + 10  # a leak would be one descriptor per fetch, fifty in all


def test_the_log_has_no_secrets(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "wan_engine")
    server.routes["/gone?sig=hush"] = b""
    for url in (server.url, server.url.replace("127.0.0.1", "127.0.0.9")):
        refusal(f"{url.replace('//', '//user:hush@')}/gone?sig=hush")
    ours = [record.getMessage() for record in caplog.records if "wan_engine" in record.name]
    assert any("ConnectionRefusedError" in line for line in ours)
    assert not any("hush" in line for line in ours)
