"""The worker as the first process of a container (PID 1), told to end before it takes jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.worker_loop.control_plane import ControlPlane

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
SLOW = """
import sys, time
from pathlib import Path

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "diffusers":
            Path("loading").touch()
            time.sleep(60)

sys.meta_path.insert(0, Slow())
"""
"""A `sitecustomize` in which the weights' library takes a minute to be read."""


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        yield plane


@pytest.fixture
def worker(tmp_path: Path, plane: ControlPlane) -> Iterator[subprocess.Popen[bytes]]:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SLOW)
    environment = {
        **{key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ},
        **plane.environment(),
        "PYTHONPATH": str(tmp_path / "site"),
        "WAN_MODEL": "wan-tiny",
        "WAN_SAFETY": "off",
        "WAN_STORAGE": "local",
        "WAN_OUTPUT_DIR": str(tmp_path / "outputs"),
        "WAN_CACHE_DIR": str(tmp_path / "cache"),
    }
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *user, "--pid", "--fork", "--mount-proc"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, sys.executable, str(ROOT / "handler.py")],
            env=environment,
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        for pid in children(process):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def children(process: subprocess.Popen[bytes]) -> list[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in listed.read_text().split()] if listed.exists() else []


def until(true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.02)


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler (proc(5), SigCgt)."""
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
