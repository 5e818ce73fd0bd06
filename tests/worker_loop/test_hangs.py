"""A worker ends if its job hangs, or if all of Python does."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from benchmarks.services.control_plane import ControlPlane
from tests.worker_loop.worker import started

FAULTY = "tests/worker_loop/faulty_worker.py"
BROKEN_EXIT = 75


def test_a_job_that_hangs_ends_its_worker_and_the_waiting_one_is_not_blamed(
    good: dict[str, Any], tmp_path: Path
) -> None:
    settings = {"WAN_SAFETY": "off", "WAN_HANG_SECONDS": "4", "WAN_PREFETCH": "1"}
    spool = {"WAN_SPOOL_DIR": str(tmp_path / "spool")}
    with (
        ControlPlane() as plane,
        started(plane, tmp_path / "worker", entry=FAULTY, **settings, **spool) as worker,
    ):
        plane.submit("hangs", {**good, "prompt": "hang"})
        plane.wait_until(lambda: ("denoise", "hangs") in plane.events, seconds=60)
        plane.submit("waits", good)
        plane.wait_until(lambda: ("prepare", "waits") in plane.events, seconds=60)
        hung = {"error": "The worker hung in denoise and had to end", "stopPod": True}
        assert plane.result("hangs") == hung
        assert plane.result("waits")["error"].endswith("under another job: send this one again")
        assert worker.process.wait(60) == BROKEN_EXIT
        plane.wait_until(lambda: worker.survivors() == [], seconds=60)
        text = worker.log.read_text()
        assert "job hangs hangs in denoise" in text
        assert "faulty_worker.py" in text.partition("hangs in denoise")[2]  # where it hung
        blamed = [path.stem for path in (tmp_path / "spool" / "starts").iterdir()]
        assert blamed == ["hangs"]


def test_a_worker_that_is_frozen_ends_too(good: dict[str, Any], tmp_path: Path) -> None:
    """A library holds the interpreter's lock, so no Python thread runs any more."""
    settings = {"WAN_SAFETY": "off", "WAN_HANG_SECONDS": "4"}
    with (
        ControlPlane() as plane,
        started(plane, tmp_path / "worker", entry=FAULTY, **settings) as worker,
    ):
        plane.submit("freezes", {**good, "prompt": "freeze"})
        assert worker.process.wait(90) == signal.SIGUSR2
        assert "faulty_worker.py" in worker.log.read_text()
        plane.wait_until(lambda: worker.survivors() == [], seconds=60)  # nor does it ping
