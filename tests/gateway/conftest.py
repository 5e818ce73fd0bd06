"""A gateway on the instant backend: in this process, or listening on a port."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
import uvicorn

from benchmarks.services import gateway, processes
from benchmarks.services.gateway import until
from benchmarks.services.instant import InstantBackend
from tests import warm
from wan_engine.gateway import app
from wan_engine.gateway.app import Gateway, create_app, open_gateway
from wan_engine.gateway.jobs import database, webhooks
from wan_engine.gateway.jobs.service import Jobs
from wan_engine.gateway.serve import protocol_of
from wan_engine.settings import Settings

PICTURE = "https://example.com/picture.jpg"
SERVE_ENDPOINT = "tests.gateway.serve_endpoint"


@pytest.fixture(autouse=True)
def quick_webhooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway in this process polls for them ten times as often as in production."""
    monkeypatch.setattr(webhooks, "_LOOK_SECONDS", 0.05)


@pytest.fixture(scope="module", autouse=True)
def doors_of_the_file(request: pytest.FixtureRequest) -> Iterator[None]:
    """A file that names its `DOORS` serves no others: the routes of all five take a third of a
    start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "DOORS", getattr(request.module, "DOORS", app.DOORS))
        yield


@cache
def new_database() -> bytes:
    """The database of a gateway that has just begun. Its migrations take a third of a start."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gateway.db"
        engine = sa.create_engine(f"sqlite:///{path}")
        with engine.begin() as connection:
            database._migrate(connection)
        engine.dispose()
        return path.read_bytes()


@dataclass
class Served:
    """`http` calls the application in this process; `backend` renders."""

    gateway: Gateway
    backend: InstantBackend
    http: httpx.AsyncClient

    @property
    def jobs(self) -> Jobs:
        return self.gateway.context.jobs


Serve = Callable[..., AbstractAsyncContextManager[Served]]


def settings_of(folder: Path, **settings: Any) -> Settings:
    """The settings of a gateway in `folder`, which gets a database if it has none."""
    values = {"output_dir": folder / "outputs", "shutdown_seconds": 0.1, **settings}
    database_file = values["output_dir"] / "gateway.db"
    if not database_file.exists():
        database_file.parent.mkdir(parents=True, exist_ok=True)
        database_file.write_bytes(new_database())
    return Settings(**values)


@asynccontextmanager
async def _open(
    folder: Path, *, slots: int = 1, webhook_again_seconds: float = 0.05, **settings: Any
) -> AsyncIterator[Served]:
    backend = InstantBackend(folder / "outputs", slots)
    known = settings_of(folder, **settings)
    opened = open_gateway(known, backend, webhook_again_seconds=webhook_again_seconds)
    async with opened as gateway:
        transport = httpx.ASGITransport(create_app(gateway), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            yield Served(gateway, backend, http)


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """`async with serve(queue_max=3) as served`: settings by name, all files in `tmp_path`."""
    return partial(_open, tmp_path)


@dataclass
class Shared:
    """One gateway for a file of tests that change nothing in it. Starting a gateway takes most of
    the time of a test of one refusal."""

    served: Served
    run: Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """`shared.run(line())` runs in the loop of `shared.served`, which stands still between
    tests."""
    with asyncio.Runner() as runner:
        opened = _open(tmp_path_factory.mktemp("shared"), rate_limit=0)
        yield Shared(runner.run(opened.__aenter__()), runner.run)
        runner.run(opened.__aexit__(None, None, None))


@dataclass
class Listening:
    url: str
    backend: InstantBackend
    stop: Callable[[], None]


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Callable[..., Listening]]:
    """`listen(queue_max=3)` starts a gateway behind a real server, for clients in another process.
    With `tls=(certificate, key)` it speaks https. It ends with the test."""
    stops: list[Callable[[], None]] = []

    def begin(tls: tuple[Path, Path] | None = None, **settings: Any) -> Listening:
        return listening(tmp_path, stops, tls, **settings)

    yield begin
    for stop in stops:
        stop()


def listening(
    folder: Path,
    stops: list[Callable[[], None]],
    tls: tuple[Path, Path] | None = None,
    **settings: Any,
) -> Listening:
    """`listen` without a test: all files are in `folder`, and what ends it comes to `stops`."""
    known = settings_of(folder, **settings)
    backend = InstantBackend(folder / "outputs")
    certificate, key = tls or (None, None)
    found: list[uvicorn.Server] = []
    ends: list[Callable[[], object]] = []

    async def run() -> None:
        async with open_gateway(known, backend) as gateway:
            loop, close = asyncio.get_running_loop(), gateway.context.jobs.close
            ends.append(partial(loop.call_soon_threadsafe, close))
            config = uvicorn.Config(
                create_app(gateway),
                port=0,
                http=protocol_of(known),
                ws="none",
                log_config=None,
                lifespan="off",
                ssl_certfile=certificate,
                ssl_keyfile=key,
            )
            found.append(uvicorn.Server(config))
            await found[0].serve()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()

    def stop() -> None:
        for end in ends if thread.is_alive() else []:
            end()
        for server in found:
            server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()

    stops.append(stop)
    until(lambda: bool(found) and found[0].started)
    port = found[0].servers[0].sockets[0].getsockname()[1]
    return Listening(f"http{'s' if tls else ''}://127.0.0.1:{port}", backend, stop)


@dataclass
class Process:
    """`python -m tests.gateway.serve_fake`: the whole gateway with its engine process."""

    url: str
    popen: processes.Process

    def ask(self, method: str, path: str, **options: Any) -> Any:
        return httpx.request(method, self.url + path, timeout=30, **options).json()

    def engine_pids(self) -> list[int]:
        children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children")
        try:
            return [int(pid) for pid in children.read_text().split()]
        except FileNotFoundError:
            return []


@contextmanager
def gateway_process(
    folder: Path,
    port: int,
    module: str = "tests.gateway.serve_fake",
    *,
    cold: bool = False,
    **environment: str,
) -> Iterator[Process]:
    """A process that answers. The large libraries are imported when it starts, unless `cold` is
    set."""
    start = processes.cold if cold else warm.shared("gateway").start
    with gateway.gateway_process(folder, port, module, start, **environment) as popen:
        yield Process(f"http://127.0.0.1:{port}", popen)


def wish(**fields: Any) -> dict[str, Any]:
    """A valid request, with the fields of the test replaced."""
    return {"prompt": "Leaves sway", "image": PICTURE, **fields}


async def eventually(true: Callable[[], Any], seconds: float = 30) -> Any:
    """What `true` returns, once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not become true in time"
        await asyncio.sleep(0.005)
    return found
