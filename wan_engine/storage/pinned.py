"""Accesses an untrusted bucket: boto's requests go to checked addresses only, and answers have a
size limit.

The endpoint comes from a caller. It may name this machine or its neighbours, change its address
between two look-ups, or answer for ever. Requests connect to the checked address, and TLS still
checks the host's name. Proxies of the environment are not used, because they would resolve the name
again.
"""

from __future__ import annotations

import io
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from wan_engine.errors import InvalidRequest

log = logging.getLogger(__name__)

_ANSWER_BYTES = 1024 * 1024  # the largest S3 answers to these requests are a few kB


class PinnedSession:
    """Connects to addresses that `allowed` accepts; it must accept all addresses of a host.

    A client uses it through `before-send`. `close` ends all connections in any state.
    """

    def __init__(self, allowed: Callable[[str], bool], timeout: tuple[float, float]) -> None:
        from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
        from botocore.httpsession import URLLib3Session  # type: ignore[import-untyped]

        self._allowed = allowed
        self._request = AWSRequest
        self._session = URLLib3Session(proxies={}, timeout=timeout)
        self._session._manager.pool_classes_by_scheme = self._pools()
        self._lock = threading.Lock()
        self._handles: list[socket.socket] = []
        self._closed = False

    def send_instead(self, request: Any, **_: object) -> Any:
        """A handler of botocore's event `before-send`. It returns the answer, so boto sends nothing
        itself."""
        from botocore.awsrequest import AWSResponse

        request.stream_output = True  # otherwise the whole answer is read before it is returned
        answer = self._session.send(request)
        body = _bounded(answer.raw)
        return AWSResponse(answer.url, answer.status_code, answer.headers, body)

    def get(self, url: str) -> tuple[int, bytes]:
        """A `probe.Get`. Raises `OSError`."""
        from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

        try:
            answer = self.send_instead(self._request(method="GET", url=url).prepare())
        except BotoCoreError as error:
            raise OSError(type(error).__name__) from error
        return answer.status_code, answer.content

    def close(self) -> None:
        with self._lock:
            self._closed = True
            handles, self._handles = self._handles, []
        for handle in handles:
            with suppress(OSError):  # ended by the other side
                handle.shutdown(socket.SHUT_RDWR)
            handle.close()
        self._session.close()

    def _pools(self) -> dict[str, Any]:
        from botocore import awsrequest  # type: ignore[import-untyped]
        from urllib3.exceptions import NewConnectionError

        def dial(connection: Any) -> socket.socket:
            try:
                return self._dial(connection.host, connection.port, connection.timeout)
            except OSError as error:
                raise NewConnectionError(connection, str(error)) from error

        pools = {}
        for scheme, pool in (
            ("http", awsrequest.AWSHTTPConnectionPool),
            ("https", awsrequest.AWSHTTPSConnectionPool),
        ):
            connection = type("Connection", (pool.ConnectionCls,), {"_new_conn": dial})
            pools[scheme] = type("Pool", (pool,), {"ConnectionCls": connection})
        return pools

    def _dial(self, host: str, port: int, timeout: float | None) -> socket.socket:
        """A connection to the first address of `host` that accepts one. Raises `OSError`."""
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        private = [address for address in addresses if not self._allowed(address)]
        if private:
            log.info("%r is %s, which is not public", host, private[0])
            # Not an `OSError`, which is retried.
            raise InvalidRequest('field "s3Config.endpointUrl": the address is not public')
        failure: OSError = OSError("the host has no address")
        for address in addresses:
            try:
                return self._keep(socket.create_connection((address, port), timeout))
            except OSError as error:
                failure = error
        raise failure

    def _keep(self, connection: socket.socket) -> socket.socket:
        """Record a connection so that `close` can end it. A duplicate, because TLS takes over the
        descriptor itself."""
        with self._lock:
            if self._closed:
                connection.close()
                raise ConnectionAbortedError
            self._handles.append(connection.dup())
        return connection


class _Body(io.BytesIO):
    """The body of an answer, with the interface of urllib3's."""

    def stream(self) -> list[bytes]:
        return [self.getvalue()]


def _bounded(raw: Any) -> _Body:
    """The whole answer. Raises `OSError` if it is too large or breaks."""
    from urllib3.exceptions import HTTPError

    try:
        data = raw.read(_ANSWER_BYTES + 1)
    except HTTPError as error:
        raise ConnectionAbortedError from error
    finally:
        raw.close()  # the connection too, unless the whole answer was read
    if len(data) > _ANSWER_BYTES:
        raise OSError("the answer is too large")
    return _Body(data)
