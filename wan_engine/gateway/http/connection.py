"""One connection of the gateway: uvicorn's, with a limit in bytes and seconds for every part of a
request.

No key is checked while a head arrives, so these limits are the same for everybody. The guard limits
the size of a body and answers a slow one. The limits here apply when nothing reads the body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from wan_engine.gateway.http.budget import Connections, Deadline, Pace

HEAD_MAX_BYTES = 64 * 1024
"""The limit of everything in a request except its body: the head, trailers, and the extensions of
chunks."""

_HEADERS_MAX = 100
_PIPELINED_MAX = 8
_DRAIN_MAX_BYTES = 64 * 2**20  # of an unread body, after its answer
_DRAIN_SECONDS = 10.0
_LINGER_MAX_BYTES = 2**20  # after a refusal, so that its text arrives before the connection closes
_LINGER_SECONDS = 2.0
_AFTER_GUARD_SECONDS = 2.0  # the guard refuses a slow body first, in the format of its door

_UNREAD_SECONDS = 60.0  # in addition to the time that the bytes of a waiting answer may take

_Stage = Literal["idle", "head", "body", "answer", "refused"]


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def protocol(pace: Pace, connections: Connections) -> type[HttpToolsProtocol]:
    """Return the class for `uvicorn.Config(http=...)`."""
    return type("Connection", (_Connection,), {"pace": pace, "connections_open": connections})


class _Connection(HttpToolsProtocol):
    pace: ClassVar[Pace]
    connections_open: ClassVar[Connections]

    _stage: _Stage = "head"
    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _refusal: _Refused | None = None
    _beside = 0  # bytes of this request outside its body
    _accounted = 0  # bytes of this read in a body or in the framing of chunks
    _chunk = 0
    _deadline: Deadline
    _drained = 0  # bytes of a body that is answered already
    _heard = 0  # bytes of the head so far, or after a refusal
    _ended = False

    # --- the connection --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Every waiting write calls `pause_writing`. The limit is not 0, because over TLS a buffer
        # as large as the limit pauses, so an empty buffer would never resume.
        transport.set_write_buffer_limits(high=1, low=0)
        self.connections_open.enter(self._address)
        crowd = self.connections_open.crowd(self._address)
        if crowd > 2:
            transport.abort()
        elif crowd > 1:
            self._refuse(_Refused(429, "Too many connections, try again later."))
        else:
            self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_unread()
        self.connections_open.leave(self._address)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused():
            self._heard += len(data)
            if self._heard > _LINGER_MAX_BYTES:
                self.transport.abort()
            return
        if self._stage == "idle":
            self._begin_head()
        self._heard += len(data)
        self._accounted, self._ended = 0, False
        super().data_received(data)
        if self._is_refused():
            return
        self._beside = 0 if self._ended else self._beside + len(data) - self._accounted
        if self._beside > HEAD_MAX_BYTES:
            self._refuse(_Refused(431, "The headers are too large."))

    def _is_refused(self) -> bool:
        return self._stage == "refused"

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal or _Refused(400, msg))

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing per request. The parser treats the rest as another protocol."""
        self.cycle.keep_alive = False

    # --- callbacks of the parser -----------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin_head()
        self._heard = 1

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._stage == "body":
            return  # a trailer: nothing reads it, and it must not pass as a header
        super().on_header(name, value)
        if len(self.headers) > _HEADERS_MAX:
            self._stop(431, "There are too many headers.")

    def on_headers_complete(self) -> None:
        self._check_target()
        if len(self.pipeline) >= _PIPELINED_MAX:
            self._stop(429, "Too many requests before an answer.")
        self._stage, self._drained = "body", 0
        self._deadline = self.pace.body(self.loop.time())
        super().on_headers_complete()
        self._start_timer(self.pace.head_seconds, self._look_at_body)

    def on_body(self, body: bytes) -> None:
        self._accounted += len(body)
        self._chunk += len(body)
        self._deadline.extend(len(body), self.loop.time())
        if self.cycle.response_complete:
            self._drained += len(body)
            if self._drained > _DRAIN_MAX_BYTES:
                self._stop(413, "The body is too large.")
        super().on_body(body)

    def on_chunk_complete(self) -> None:
        self._accounted += len(f"{self._chunk:x}\r\n\r\n")
        self._chunk = 0

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._stop_timer()
        self._beside, self._chunk, self._ended = 0, 0, True
        self._stage = "answer"
        if self.cycle.response_complete:
            self._stage = "idle"
            if self.timeout_keep_alive_task is None and not self.transport.is_closing():
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.cycle.response_complete or self.transport.is_closing():
            return
        if self._stage == "answer":
            self._stage = "idle"
        elif self._stage == "body":
            self._start_timer(_DRAIN_SECONDS, self.transport.close)

    # --- limits ----------------------------------------------------------------------------------

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def _begin_head(self) -> None:
        self._stage, self._heard, self._beside = "head", 0, 0
        self._start_timer(self.pace.head_seconds, self._end_head)

    def _end_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete and not self.pipeline:
            self.cycle.keep_alive = False  # the previous request is answered, and is the last one
            return
        if self._heard:
            self._refuse(_Refused(408, "The head of the request took too long."))
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """Start a time limit. Otherwise a caller that does not read its answer would keep the
        connection open forever, even after a close."""
        super().pause_writing()
        seconds = _UNREAD_SECONDS + self.transport.get_write_buffer_size() / self.pace.body_rate
        self._stop_unread()
        self._unread = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_unread()

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _look_at_body(self) -> None:
        now = self.loop.time()
        if self.flow.read_paused:  # the gateway is the slow side
            self._deadline = self.pace.body(now)
        left = self._deadline.at + _AFTER_GUARD_SECONDS - now
        if left > 0:
            self._start_timer(left, self._look_at_body)
        else:
            self._refuse(_Refused(408, "The body of the request took too long."))

    def _check_target(self) -> None:
        """Raise `_Refused` unless the request is for a path on the host that its header names."""
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1:
            self._stop(400, "There is more than one Host.")
        if self.url.startswith(b"/"):
            return
        try:
            target = httptools.parse_url(self.url)
        except httptools.HttpParserError:
            target = None
        if target is None or not (target.schema and target.path):
            self._stop(400, "The target of the request must be a path.")
        if self.url.split(b"/")[2].lower() not in [host.strip().lower() for host in hosts]:
            self._stop(400, "The target and the Host differ.")

    def _stop(self, status: int, text: str) -> None:
        """Stop the parser, which calls `send_400_response`."""
        self._refusal = _Refused(status, text)
        raise self._refusal

    def _refuse(self, refused: _Refused) -> None:
        """Send the refusal, unless an answer has begun, and let the connection close."""
        if self.transport.is_closing() or self._stage == "refused":
            return
        if self._leave_application():
            self.transport.close()
            return
        text = str(refused).encode()
        head = [
            STATUS_LINE[refused.status],
            b"content-type: text/plain; charset=utf-8\r\n",
            b"content-length: %d\r\n" % len(text),
            b"retry-after: 1\r\n" if refused.status == 429 else b"",
            b"connection: close\r\n\r\n",
        ]
        self._stage, self._heard = "refused", 0
        self.transport.write(b"".join([*head, text]))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._start_timer(_LINGER_SECONDS, self.transport.close)

    def _leave_application(self) -> bool:
        """Tell the application that the caller has disconnected. Returns whether no refusal can be
        sent: an answer has begun, or the next answer belongs to an earlier request."""
        if self.cycle is None or self.cycle.response_complete:
            return False
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        return bool(self.pipeline) or self._stage == "head" or self.cycle.response_started

    # --- timer -----------------------------------------------------------------------------------

    def _start_timer(self, seconds: float, then: Callable[[], Any]) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
