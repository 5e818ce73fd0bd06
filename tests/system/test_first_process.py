"""The worker and the gateway as the first process of a container (PID 1), told to end before they
take jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.services.control_plane import ControlPlane

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
SLOW = """
import os, sys, time
from pathlib import Path

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["SLOW_IMPORT"]:
            Path("loading").touch()
            time.sleep(60)

sys.meta_path.insert(0, Slow())
"""
"""A `sitecustomize` in which one library takes a minute to import: `diffusers` delays the loading
of weights, `uvicorn` the gateway."""


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        yield plane


@contextmanager
def first_process(
    folder: Path, *arguments: str, slow: str = "diffusers", **settings: str
) -> Iterator[subprocess.Popen[bytes]]:
    """`unshare`, whose only child is Python as PID 1 of a new namespace."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SLOW)
    environment = {
        **{key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ},
        "PYTHONPATH": f"{folder / 'site'}:{ROOT}",
        "SLOW_IMPORT": slow,
        "WAN_MODEL": "wan-tiny",
        "WAN_SAFETY": "off",
        "WAN_STORAGE": "local",
        "WAN_OUTPUT_DIR": str(folder / "outputs"),
        "WAN_CACHE_DIR": str(folder / "cache"),
        **settings,
    }
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *user, "--pid", "--fork", "--mount-proc", "--kill-child"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, sys.executable, *arguments],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def worker(tmp_path: Path, plane: ControlPlane) -> Iterator[subprocess.Popen[bytes]]:
    with first_process(tmp_path, str(ROOT / "handler.py"), **plane.environment()) as process:
        yield process


def children(process: subprocess.Popen[bytes]) -> list[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in listed.read_text().split()] if listed.exists() else []


def until(true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.02)


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal (proc(5), SigCgt)."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_while_it_loads(
    worker: subprocess.Popen[bytes], tmp_path: Path, plane: ControlPlane, number: signal.Signals
) -> None:
    until(lambda: (tmp_path / "loading").exists())
    [first] = children(worker)
    os.kill(first, number)
    assert worker.wait(20) == 128 + number, (tmp_path / "log").read_text()
    assert plane.polls == 0


def test_it_ends_while_it_imports(
    worker: subprocess.Popen[bytes], tmp_path: Path, plane: ControlPlane
) -> None:
    until(lambda: children(worker))
    [first] = children(worker)
    until(lambda: catches(first, signal.SIGTERM))
    assert not (tmp_path / "loading").exists()
    os.kill(first, signal.SIGTERM)
    assert worker.wait(20) == 128 + signal.SIGTERM
    assert plane.polls == 0


SERVE = ("-m", "wan_engine", "serve", "--port", "0")


def test_the_gateway_ends_while_it_imports(tmp_path: Path) -> None:
    with first_process(tmp_path, *SERVE, slow="uvicorn") as gateway:
        until(lambda: (tmp_path / "loading").exists())
        [first] = children(gateway)
        os.kill(first, signal.SIGTERM)
        assert gateway.wait(20) == 128 + signal.SIGTERM, (tmp_path / "log").read_text()


def test_the_gateway_ends_while_its_engine_loads(tmp_path: Path) -> None:
    with first_process(tmp_path, *SERVE) as gateway:
        until(lambda: (tmp_path / "loading").exists())
        [first] = children(gateway)
        os.kill(first, signal.SIGTERM)
        assert gateway.wait(40) == 0, (tmp_path / "log").read_text()
