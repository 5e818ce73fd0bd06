"""Downloads a URL or decodes a data URI of a request, within a limit of bytes and seconds.

The URL comes from a stranger. It may name this machine or its neighbours, and its server may be
slow, lie or never end. Parts of the runpod SDK connect to a checked address. The deadline, the
stricter address check and the error messages are ours. Other modules decide what the bytes mean.
"""

from __future__ import annotations

import base64
import errno
import ipaddress
import logging
import os
import queue
import random
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

from wan_engine.control import Control
from wan_engine.errors import EngineError, InvalidMedia

log = logging.getLogger(__name__)

_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_CONNECT_SECONDS = 10.0  # an address that drops packets must leave time for the next one
_POLL_SECONDS = 0.05
_AGAIN_SECONDS = (0.5, 1.5)  # waits before the second and the third try, halved at random
_BUSY_STATUSES = (408, 429, 500, 502, 503, 504)
_CHUNK_BYTES = 64 * 1024
_HEADERS = {"User-Agent": "wan-engine", "Accept": "*/*", "Accept-Encoding": "identity"}
_JSON_HEADERS = {**_HEADERS, "Content-Type": "application/json"}
_BAD_URL = "the URL is not valid"
# Errors of the libraries if a connection ends while they use it: urllib3 takes a broken pipe
# for an early answer, and then uses a socket that is None.
_CONFUSED = (AttributeError, TypeError, LookupError, AssertionError, EOFError)
# Outside of 2000::/3 lie NAT64, site-local, IPv4-mapped and IPv4-compatible addresses. The networks
# below look public to the SDK, or do on some Python versions: Teredo and 6to4 (IPv4 addresses in
# disguise), documentation, the old 6bone, 6to4 relays, and the platform services of Oracle
# (192.0.0.192) and Azure.
_IPV6_UNICAST = ipaddress.ip_network("2000::/3")
_NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        *("2001::/23", "2002::/16", "2001:db8::/32", "3fff::/20", "3ffe::/16"),
        *("192.88.99.0/24", "192.0.0.0/24", "168.63.129.16/32"),
    )
]


@dataclass(frozen=True)
class FetchLimits:
    """`seconds` of wall clock cover names, redirects and body. `allow_private` drops the address
    check, nothing else."""

    max_bytes: int
    seconds: float
    allow_private: bool = False


class _Refused(Exception):
    """A refused download. The text is for the caller."""


class _Broken(_Refused):
    """A failure that may be temporary, so the request is repeated."""


def fetch(source: str, field: str, limits: FetchLimits, control: Control) -> bytes:
    """The bytes of an http(s) URL or a data URI, never empty. Raises `InvalidMedia`."""
    control.checkpoint()
    try:
        inline = source[:5].lower() == "data:"
        data = _inline(source, limits) if inline else _download(source, limits, control)
        if not data:
            raise _Refused("the file is empty")
    except _Refused as refused:
        log.info("%s not fetched: %s", field, refused)
        raise InvalidMedia(field, str(refused)) from refused
    return data


def post(url: str, body: bytes, limits: FetchLimits, control: Control) -> int:
    """POST `body`, JSON, once to an http(s) URL, and return the status of the answer. The answer is
    not read, and redirects are not followed. Raises `InvalidMedia` for the field "webhook"."""
    # Imported before the clock starts, as in `_download`.
    import requests  # noqa: F401
    from runpod.serverless.utils import rp_ssrf  # noqa: F401

    line = _Line(limits.seconds, control)
    try:
        with closing(line), control.watch(line.cut, limits.seconds):
            response = _ask(url, limits, line, body)
            with closing(response.connection), closing(response):
                line.left()
                return int(response.status_code)
    except _Refused as refused:
        raise InvalidMedia("webhook", str(refused)) from refused


def data_uri(path: Path | str) -> str:
    """A local file as a data URI, for trusted callers. Raises `OSError`."""
    encoded = base64.b64encode(Path(path).read_bytes()).decode()
    return f"data:application/octet-stream;base64,{encoded}"


def is_public_address(ip: str) -> bool:
    """Whether `ip` is a public address that contains no other address."""
    from runpod.serverless.utils.rp_ssrf import is_safe_address

    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    if address.version == 6 and ("%" in ip or address not in _IPV6_UNICAST):
        return False
    return is_safe_address(ip) and not any(address in network for network in _NOT_PUBLIC)


def _too_large(limits: FetchLimits) -> _Refused:
    return _Refused(f"the file is larger than {limits.max_bytes / 2**20:g} MB")


def _inline(uri: str, limits: FetchLimits) -> bytes:
    comma = uri.find(",")
    # The longest spelling of a byte is base64 with every character percent-encoded.
    if len(uri) - comma > 4 * (limits.max_bytes + 2) + 1:
        raise _too_large(limits)
    try:
        data = _unquoted(uri[comma + 1 :])
    except UnicodeError:  # half of a surrogate pair
        comma = -1
    if comma < 0:
        raise _Refused("the data URI is not valid")
    if any(word.strip().lower() == "base64" for word in uri[:comma].split(";")[1:]):
        return _base64(data, limits)
    if len(data) > limits.max_bytes:
        raise _too_large(limits)
    return data


def _unquoted(text: str) -> bytes:
    """Decode percent signs in blocks: in one go, urllib takes 1.1 GB for 20 MB."""
    data, start = bytearray(), 0
    while start < len(text):
        end = start + _CHUNK_BYTES
        escape = text.find("%", end - 2, end)
        if escape > start:  # the block would end inside an escape
            end = escape
        data += unquote_to_bytes(text[start:end])
        start = end
    return bytes(data)


def _base64(text: bytes, limits: FetchLimits) -> bytes:
    text = text.translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n\f")
    digits = text.rstrip(b"=")
    if len(digits) * 3 // 4 > limits.max_bytes:
        raise _too_large(limits)
    try:
        # Padding may be missing, but if present it must be correct.
        padding = text[len(digits) :] or b"=" * (-len(digits) % 4)
        return base64.b64decode(digits + padding, validate=True)
    except ValueError:
        raise _Refused("the data URI is not valid base64") from None


class _Line:
    """The time and the connection of one download. Another thread may end it."""

    def __init__(self, seconds: float, control: Control) -> None:
        self._seconds, self._control = seconds, control
        self._deadline = time.monotonic() + seconds
        self._lock = threading.RLock()
        self._cut = False
        self._handle: socket.socket | None = None
        self._answer: HTTPResponse | None = None

    def left(self) -> float:
        """Seconds left, always positive. Raises if there are none or the job must stop.

        Call it after every read: a cut may look like the end of the headers or of the body.
        """
        self._control.checkpoint()
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise _Refused(f"the download took longer than {self._seconds:g} seconds")
        return left

    def wait(self, seconds: float) -> None:
        """Wait for a while, at most until the deadline or a cancellation."""
        end = time.monotonic() + seconds
        while (rest := end - time.monotonic()) > 0:
            time.sleep(min(_POLL_SECONDS, rest, self.left()))

    def connect(self, ip: str, port: int, timeout: float | None) -> socket.socket:
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            with self._lock:
                if self._cut:
                    raise ConnectionAbortedError
                self.close()
                # A duplicate, because TLS takes over the first descriptor, and urllib3 closes it at
                # any time. Shutting down one shuts down both.
                self._handle = connection.dup()
                # Connect in here, so that a cut always finds a connection and not a bare socket.
                connection.setblocking(False)
                begun = connection.connect_ex((ip, port))
            self._await(connection, begun, timeout)
            connection.settimeout(timeout)
        except BaseException:
            connection.close()
            raise
        return connection

    def _await(self, connection: socket.socket, begun: int, timeout: float | None) -> None:
        poll = select.poll()
        poll.register(connection, select.POLLOUT)
        if begun == errno.EINPROGRESS:
            if not poll.poll(None if timeout is None else timeout * 1000):
                raise TimeoutError
            begun = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if self._cut:  # a socket shut down while connecting counts as connected
            raise ConnectionAbortedError
        if begun:
            raise OSError(begun, os.strerror(begun))

    def cut(self) -> None:
        """End the connection at once, in any state, and allow no other."""
        with self._lock:
            self._cut = True
            if self._handle is not None:
                with suppress(OSError):  # not connected yet, or no longer
                    self._handle.shutdown(socket.SHUT_RDWR)

    def keep(self, answer: HTTPResponse) -> HTTPResponse:
        """Close it together with the line, because urllib3 loses an answer with invalid headers."""
        self._answer = answer
        return answer

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()
        with self._lock:
            if self._handle is not None:
                self._handle.close()
                self._handle = None


@contextmanager
def _told_as(why: str, line: _Line, kind: type[_Refused] = _Refused) -> Iterator[None]:
    """Report every failure inside the block as `why`, unless it happened because the line was
    cut."""
    from requests.exceptions import ContentDecodingError, SSLError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (OSError, ValueError, HTTPException, HTTPError, *_CONFUSED) as error:
        try:
            line.left()
        except (EngineError, _Refused) as ended:
            # Without the server's text: an untrusted server must not pass data on.
            raise ended from None
        if isinstance(error, SSLError):
            why, kind = "the secure connection failed", _Refused
        elif isinstance(error, ContentDecodingError):
            why, kind = "the server's answer could not be decoded", _Refused
        log.info("%s: %s", why, _cause(error))
        raise kind(why) from None


def _cause(error: BaseException | None) -> str:
    """The types in an error's chain. Their texts contain the whole URL with its query."""
    names: list[str] = []
    while error is not None and len(names) < 8:
        number = getattr(error, "errno", None)
        names.append(type(error).__name__ + (f" {number}" if isinstance(number, int) else ""))
        error = error.__cause__ or error.__context__
    return " < ".join(names)


def _download(url: str, limits: FetchLimits, control: Control) -> bytes:
    # Imported before the clock starts: the SDK alone takes more than a second, once.
    import requests  # noqa: F401
    from runpod.serverless.utils import rp_ssrf  # noqa: F401

    line = _Line(limits.seconds, control)
    with closing(line), control.watch(line.cut, limits.seconds):
        for wait_seconds in _AGAIN_SECONDS:
            try:
                return _follow(url, limits, line)
            except _Broken as broken:
                log.info("retrying: %s", broken)
            line.wait(wait_seconds * random.uniform(0.5, 1))
        return _follow(url, limits, line)


def _follow(url: str, limits: FetchLimits, line: _Line) -> bytes:
    for _ in range(_MAX_REDIRECTS + 1):
        response = _ask(url, limits, line)
        with closing(response.connection), closing(response):
            line.left()
            location = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or not location:
                return _body(response, limits, line)
            with _told_as(_BAD_URL, line):
                url = urljoin(response.url, location.encode("latin-1").decode())
    raise _Refused("too many redirects")


def _ask(url: str, limits: FetchLimits, line: _Line, body: bytes | None = None) -> Any:
    """The `requests.Response`, with its body unread, of the first address that answers. With
    `body`, which is JSON, it is a POST."""
    import requests

    with _told_as(_BAD_URL, line):
        # No session, so nothing from the environment (proxies, .netrc) and no cookies.
        method, headers = ("GET", _HEADERS) if body is None else ("POST", _JSON_HEADERS)
        request = requests.Request(method, url, headers=headers, data=body).prepare()
        parts = urlsplit(str(request.url))  # only this text counts: parsers differ on raw ones
        host = parts.hostname
    if parts.scheme not in ("http", "https"):
        raise _Refused("only http, https and data URIs are allowed")
    if not host:
        raise _Refused(_BAD_URL)
    addresses = _addresses(host, limits, line)
    with _told_as("the connection failed", line, _Broken):
        for number, ip in enumerate(addresses):
            left = line.left()
            connect = min(_CONNECT_SECONDS, left / (len(addresses) - number))
            try:
                adapter = _adapter(ip, line)
                return adapter.send(request, stream=True, timeout=(connect, left), proxies={})
            except requests.ConnectionError as error:
                log.debug("%r at %s: %s", host, ip, _cause(error))
                if number == len(addresses) - 1:
                    raise


def _addresses(host: str, limits: FetchLimits, line: _Line) -> list[str]:
    """The addresses of `host`. All must be public. One that is not makes the host hostile."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            answers.put(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        except (OSError, ValueError) as error:  # ValueError: a name that cannot be encoded
            answers.put(error)

    # The resolver cannot be interrupted, so its thread is abandoned when the time is up.
    threading.Thread(target=resolve, name="resolve", daemon=True).start()
    answer: Any = None
    while answer is None:
        left = line.left()
        with suppress(queue.Empty):
            answer = answers.get(timeout=min(_POLL_SECONDS, left))
    if isinstance(answer, Exception) or not answer:
        log.info("%r could not be resolved: %r", host, answer)
        raise _Refused("the host name could not be resolved")
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in answer))
    private = [] if limits.allow_private else [ip for ip in addresses if not is_public_address(ip)]
    if private:
        log.info("%r is %s, which is not public", host, private[0])
        raise _Refused("the address is not public")
    return addresses


class _Answer(HTTPResponse):
    """A response of the standard library that refuses a chunk of size -1, which would mean "read
    everything"."""

    def _safe_read(self, amt: int) -> bytes:
        if amt < 0:
            raise HTTPException("negative chunk size")
        return super()._safe_read(amt)  # type: ignore[misc, no-any-return]


def _adapter(ip: str, line: _Line) -> Any:
    """The SDK's adapter, which keeps Host, SNI and the name of the certificate, with sockets of
    `line`."""
    from runpod.serverless.utils.rp_ssrf import PinnedIPAdapter

    class Adapter(PinnedIPAdapter):  # type: ignore[misc]
        def _pin(self, pool: Any, url: str) -> Any:
            pool = super()._pin(pool, url)
            own = {
                "response_class": lambda self, *args, **named: line.keep(_Answer(*args, **named)),
                "_new_conn": lambda self: line.connect(ip, self.port, self.timeout),
            }
            pool.ConnectionCls = type("Connection", (pool.ConnectionCls,), own)
            return pool

    return Adapter(ip)


def _body(response: Any, limits: FetchLimits, line: _Line) -> bytes:
    from runpod.serverless.utils.rp_ssrf import SSRFError, iter_content_capped

    if response.status_code != 200:
        kind = _Broken if response.status_code in _BUSY_STATUSES else _Refused
        raise kind(f"the server answered {response.status_code}")
    if (response.raw.length_remaining or 0) > limits.max_bytes:
        raise _too_large(limits)
    with _told_as("the connection was closed before the end of the file", line, _Broken):
        try:
            body = b"".join(iter_content_capped(response, _CHUNK_BYTES, limits.max_bytes))
        except SSRFError:
            raise _too_large(limits) from None
        line.left()
    return body
