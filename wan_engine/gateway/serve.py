"""Runs the gateway in one uvicorn server, for `python -m wan_engine serve`."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from wan_engine.errors import ConfigurationError
from wan_engine.gateway.app import Gateway, create_app, open_gateway
from wan_engine.gateway.backends import Backend, open_backend
from wan_engine.gateway.http.budget import Connections, Pace, raise_descriptor_limit
from wan_engine.gateway.http.connection import protocol
from wan_engine.gateway.loopback import is_loopback
from wan_engine.gateway.metrics import Metrics
from wan_engine.settings import Settings

log = logging.getLogger(__name__)

OpenBackend = Callable[[Settings, Metrics, Callable[[str], None]], Backend]


def serve(
    settings: Settings, host: str, port: int, open_backend: OpenBackend = open_backend
) -> None:
    """Serve until SIGTERM or SIGINT. Raises `ConfigurationError`."""
    if not settings.api_keys:
        _check_keyless(settings, host)
        log.warning("WAN_API_KEYS is not set: the gateway answers only programs on this machine")
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
            http=protocol_of(settings),
            ws="none",
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


def protocol_of(settings: Settings) -> type[asyncio.Protocol]:
    """The arguments of `uvicorn.Config`, with these limits."""
    connections = Connections(
        raise_descriptor_limit(), settings.connections_per_address, settings.trusted_proxies
    )
    return protocol(Pace(settings.head_seconds, settings.body_rate), connections)


class _Server(uvicorn.Server):
    """Answers waiting callers before it waits for their connections, and lets `serve` handle the
    signals."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own method sends the signal again once the server has ended, which would end
        the process before running jobs are back in the queue."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def end(number: signal.Signals) -> None:
            if self.should_exit and task is not None:
                task.cancel()  # a second signal: do not wait for running jobs
            self.handle_exit(number, None)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end, number)
        yield
        # The handlers stay until the process ends.

    async def shutdown(self, sockets: Any = None) -> None:
        self._gateway.context.jobs.close()
        await super().shutdown(sockets)


def _check_keyless(settings: Settings, host: str) -> None:
    """Raise `ConfigurationError` if other machines could call."""
    make = "make a key with `python -m wan_engine key NAME`, and set WAN_API_KEYS"
    if not is_loopback(host):
        raise ConfigurationError(
            f"Without keys the gateway listens on this machine only, not on {host}: {make}"
        )
    public = urlsplit(settings.public_url or "http://localhost").hostname or ""
    for variable, local in (
        ("WAN_PUBLIC_URL", is_loopback(public)),
        ("WAN_TRUSTED_PROXIES", not settings.trusted_proxies),
    ):
        if not local:
            raise ConfigurationError(
                f"{variable} is set, and without keys all callers of the proxy would be "
                f"answered: {make}"
            )
