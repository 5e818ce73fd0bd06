"""A gateway as a process that listens on a port."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.services.processes import ROOT, Process, Start, cold

INSTANT = "benchmarks.services.instant"


@contextmanager
def gateway_process(
    folder: Path, port: int, module: str = INSTANT, start: Start = cold, **environment: str
) -> Iterator[Process]:
    """`python -m module port`, whose files and log are in `folder`, once it answers or has ended.
    It is killed at the end if it still runs."""
    values = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "WAN_OUTPUT_DIR": str(folder / "outputs"),
        "WAN_SHUTDOWN_SECONDS": "0.2",
        **environment,
    }
    command = ["-m", module, str(port)]
    with (folder / "gateway.log").open("ab") as log, Path(os.devnull).open() as nothing:
        process = start(command, env=values, cwd=folder, stdin=nothing, stdout=log, stderr=log)
    try:
        until(lambda: process.poll() is not None or answers(f"http://127.0.0.1:{port}"))
        yield process
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a gateway at `url` says that it lives."""
    try:
        return httpx.get(f"{url}/healthz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Return once `true` is. Raises AssertionError."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.02)
