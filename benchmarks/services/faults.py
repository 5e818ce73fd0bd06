"""A TCP proxy in front of a real object store, which injects faults.

It takes one request per connection, passes it on and returns the answer, unless a fault is set.
"""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

_RST = struct.pack("ii", 1, 0)
_BLOCK = 65536


@dataclass
class Request:
    method: str
    target: str
    body_bytes: int


@dataclass
class Fault:
    """`kind` is one of

    - `answer`: read the request, answer `status` with `code`
    - `reset-body`: RST after `after_bytes` of the body
    - `reset-answer`: let the store work, then RST instead of its answer
    - `half-answer`: let the store work, then end after `after_bytes` of its answer
    - `stall`: read the request, never answer
    - `stall-body`: stop reading after `after_bytes` of the body, and never answer
    - `stall-answer`: let the store work, stop after `after_bytes` of its answer

    Below zero, `after_bytes` of an answer are the bytes that are held back. `then` is called each
    time.
    """

    kind: str
    times: int = 1
    when: Callable[[Request], bool] = field(default=lambda request: True)
    after_bytes: int = 0
    status: int = 500
    code: str = "InternalError"
    then: Callable[[], object] = field(default=lambda: None)


class FaultProxy(socketserver.ThreadingTCPServer):
    """`seen` has every request that arrived, `injected` counts the faults by kind. Headers named in
    `unknown` do not reach the store."""

    allow_reuse_address = True
    daemon_threads = False
    block_on_close = True
    request_queue_size = 64

    def __init__(self, host: str, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.store = (host, port)
        self.seen: list[Request] = []
        self.injected: Counter[str] = Counter()
        self.unknown: tuple[str, ...] = ()
        self.over = threading.Event()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def inject(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def mend(self) -> None:
        with self._lock:
            self._faults.clear()

    def take(self, request: Request) -> Fault | None:
        """Record the request, and return the fault for it."""
        with self._lock:
            self.seen.append(request)
            found = next((f for f in self._faults if f.times and f.when(request)), None)
            if found is not None:
                found.times -= 1
                self.injected[found.kind] += 1
        if found is not None:
            found.then()
        return found

    def close(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores errors, because half of the tests have clients that hang up."""


class _Connection(socketserver.BaseRequestHandler):
    server: FaultProxy
    request: socket.socket

    def handle(self) -> None:
        self.request.settimeout(20)
        head, body = self._read_head()
        if not head:
            return
        method, target, _ = head[0].split(" ", 2)
        headers = dict(line.lower().split(": ", 1) for line in head[1:])
        length = int(headers.get("content-length", 0))
        request = Request(method, target, length)
        fault = self.server.take(request)
        kind = fault.kind if fault else ""
        if headers.get("expect") and length:
            self.request.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        limit = fault.after_bytes if fault and kind in ("reset-body", "stall-body") else length
        body = self._read_body(body, limit)
        if kind == "reset-body":
            self._reset()
        elif kind in ("stall", "stall-body"):
            self._stall()
        elif fault and kind == "answer":
            self.request.sendall(_error(request, fault))
        else:
            self._hand_back(self._ask_store(head, body), fault)

    def _read_head(self) -> tuple[list[str], bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            block = self.request.recv(_BLOCK)
            if not block:
                return [], b""
            data += block
        head, _, rest = data.partition(b"\r\n\r\n")
        return head.decode("latin-1").split("\r\n"), rest

    def _read_body(self, start: bytes, length: int) -> bytes:
        blocks, left = [start], length - len(start)
        while left > 0:
            block = self.request.recv(min(_BLOCK, left))
            if not block:
                raise ConnectionError("the client hung up")
            blocks.append(block)
            left -= len(block)
        return b"".join(blocks)

    def _ask_store(self, head: list[str], body: bytes) -> bytes:
        dropped = ("expect", "connection", *self.server.unknown)
        kept = [line for line in head if line.lower().partition(":")[0] not in dropped]
        text = "\r\n".join([*kept, "Connection: close"]) + "\r\n\r\n"
        answer = []
        with socket.create_connection(self.server.store, timeout=20) as store:
            store.sendall(text.encode("latin-1") + body)
            while block := store.recv(_BLOCK):
                answer.append(block)
        return b"".join(answer)

    def _hand_back(self, answer: bytes, fault: Fault | None) -> None:
        if fault and fault.kind == "reset-answer":
            self._reset()
            return
        self.request.sendall(answer[: fault.after_bytes] if fault else answer)
        if fault and fault.kind == "stall-answer":
            self._stall()

    def _reset(self) -> None:
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
        self.request.close()

    def _stall(self) -> None:
        self.server.over.wait(30)


def _error(request: Request, fault: Fault) -> bytes:
    text = f"<Error><Code>{fault.code}</Code><Message>m</Message></Error>"
    body = "" if request.method == "HEAD" else text
    return (
        f"HTTP/1.1 {fault.status} Fault\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    ).encode()
