"""`python -m wan_engine serve`: one uvicorn server around one open gateway."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from wan_engine.errors import ConfigurationError
from wan_engine.gateway.app import Gateway, create_app, open_gateway
from wan_engine.gateway.backends import Backend, open_backend
from wan_engine.gateway.metrics import Metrics
from wan_engine.settings import Settings

log = logging.getLogger(__name__)

_HEAD_MAX_BYTES = 64 * 1024

OpenBackend = Callable[[Settings, Metrics, Callable[[str], None]], Backend]


def serve(
    settings: Settings, host: str, port: int, open_backend: OpenBackend = open_backend
) -> None:
    """Until SIGTERM or SIGINT. Raises `ConfigurationError`."""
    if not settings.api_keys and not _is_loopback(host):
        raise ConfigurationError(
            f"Without keys the gateway listens on this machine only, not on {host}: make a key "
            "with `python -m wan_engine key NAME`, and set WAN_API_KEYS"
        )
    if not settings.api_keys:
        log.warning("no WAN_API_KEYS: only programs of this machine are answered")
    # Until uvicorn's: as a first process (PID 1) it would be deaf while it opens its database.
    signal.signal(signal.SIGTERM, lambda number, _frame: os._exit(128 + number))
    try:
        asyncio.run(_serve(settings, host, port, open_backend))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _serve(settings: Settings, host: str, port: int, open_backend: OpenBackend) -> None:
    fatal: list[str] = []
    server: _Server | None = None

    def on_fatal(why: str) -> None:
        fatal.append(why)
        if server is not None:
            server.should_exit = True

    metrics = Metrics()
    backend = open_backend(settings, metrics, on_fatal)
    async with open_gateway(settings, backend, metrics, on_fatal=on_fatal) as gateway:
        config = uvicorn.Config(
            create_app(gateway),
            host=host,
            port=port,
            http=_Http,
            log_config=None,
            access_log=False,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=list(settings.trusted_proxies),
            timeout_graceful_shutdown=10,
            timeout_keep_alive=75,  # longer than SDKs and proxies wait between two polls
            lifespan="off",
        )
        server = _Server(config, gateway)
        await server.serve()
    if fatal:
        raise ConfigurationError(fatal[0])


class _Http(HttpToolsProtocol):
    """Its parser gathers headers of any size, before anybody has looked at a key."""

    _head_bytes = 0
    _in_body = False
    _head_ended = False

    def data_received(self, data: bytes) -> None:
        was_in_body, self._head_ended = self._in_body, False
        super().data_received(data)
        if was_in_body or self._head_ended:
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > _HEAD_MAX_BYTES and not self.transport.is_closing():
            self.send_400_response("The headers are too large.")

    def on_headers_complete(self) -> None:
        self._head_ended = self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()


class _Server(uvicorn.Server):
    """Answers those that wait before it waits for them, and leaves its end to who began it."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own sends the signal again once the server has ended, which would end the
        process before running jobs are back in the queue."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def end(number: signal.Signals) -> None:
            if self.should_exit and task is not None:
                task.cancel()  # a second one: what runs is not waited for
            self.handle_exit(number, None)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end, number)
        yield
        # They stay until the process ends.

    async def shutdown(self, sockets: Any = None) -> None:
        self._gateway.context.jobs.close()
        await super().shutdown(sockets)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
