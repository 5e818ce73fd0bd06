"""An open gateway on the instant backend, and an HTTP client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.fakes import InstantBackend
from wan_engine.gateway.app import Gateway, create_app, open_gateway
from wan_engine.settings import Settings

PICTURE = "https://example.com/picture.jpg"


@dataclass
class Served:
    """`http` talks to the application in this process; `backend` is what renders."""

    gateway: Gateway
    backend: InstantBackend
    http: httpx.AsyncClient


Serve = Callable[..., Any]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """`async with serve(queue_max=3) as served`: settings by name, all files in `tmp_path`."""

    @asynccontextmanager
    async def served(*, slots: int = 1, **settings: Any) -> AsyncIterator[Served]:
        values = {"output_dir": tmp_path / "outputs", "shutdown_seconds": 0.2, **settings}
        backend = InstantBackend(tmp_path / "outputs", slots)
        async with open_gateway(Settings(**values), backend) as gateway:
            transport = httpx.ASGITransport(create_app(gateway), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                yield Served(gateway, backend, http)

    return served


def wish(**fields: Any) -> dict[str, Any]:
    """A request's fields, right unless a test says otherwise."""
    return {"prompt": "Leaves sway", "image": PICTURE, **fields}
