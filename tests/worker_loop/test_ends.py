"""A worker that is told to end finishes what it has begun."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.services.control_plane import ControlPlane
from tests.worker_loop.worker import processes_of, started


def test_a_terminated_worker_finishes_its_job(good: dict[str, Any], tmp_path: Path) -> None:
    with ControlPlane() as plane, started(plane, tmp_path / "worker") as worker:
        plane.submit("busy", good)
        plane.wait_until(lambda: bool(plane.posts["busy"].progress), seconds=60)
        worker.process.send_signal(signal.SIGTERM)
        result = plane.result("busy")
        assert "output" in result, result
        assert worker.process.wait(15) == 0
        plane.wait_until(lambda: worker.survivors() == [], seconds=15)


@pytest.mark.parametrize("late", [False, True], ids=["nothing arrives", "a job arrives"])
def test_an_idle_worker_ends_when_it_is_told_to(
    good: dict[str, Any], tmp_path: Path, late: bool
) -> None:
    with ControlPlane() as plane, started(plane, tmp_path / "worker") as worker:
        plane.wait_until(lambda: plane.polls > 0, seconds=60)
        polls = plane.polls
        plane.wait_until(lambda: plane.polls > polls, seconds=5)  # a poll that has just begun
        worker.process.send_signal(signal.SIGTERM)
        if late:
            time.sleep(0.4)
            plane.submit("late", {**good, "seed": "x"})
            assert "seed" in plane.result("late", seconds=10)["error"]
        assert worker.process.wait(15) == 0
        plane.wait_until(lambda: processes_of(worker.process.pid) == [], seconds=15)
