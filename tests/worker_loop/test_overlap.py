"""WAN_PREFETCH=1 in the real loop: two jobs on one worker, of which one has the device."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.services.bucket import Bucket
from benchmarks.services.control_plane import ControlPlane
from benchmarks.services.faults import Fault
from tests.worker_loop.worker import Worker, started
from wan_engine.media import ffmpeg

_PREFETCH = {"WAN_PREFETCH": "1", "WAN_SAFETY": "off"}
_SOON = 0.5  # seconds in which a tiny job with the device would have reported its first step


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        yield plane


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("overlap")


@pytest.fixture(scope="module")
def worker(plane: ControlPlane, bucket: Bucket, folder: Path) -> Iterator[Worker]:
    """A worker whose ffmpeg writes the clip but does not end while the file `hold` exists, so that
    the job keeps the device."""
    script = folder / "ffmpeg"
    script.write_text(
        f"#!/bin/sh\n'{ffmpeg.executable()}' \"$@\"\ncode=$?\n"
        f"while [ -e '{folder}/hold' ]; do sleep 0.05; done\nexit $code\n"
    )
    script.chmod(0o755)
    settings = {
        **bucket.settings(),
        **_PREFETCH,
        "WAN_SPOOL_DIR": str(folder / "spool"),
        "IMAGEIO_FFMPEG_EXE": str(script),
    }
    with started(plane, folder / "worker", **settings) as worker:
        plane.wait_until(lambda: plane.polls > 0, seconds=60)  # its checks run that ffmpeg too
        yield worker


@pytest.fixture
def hold(folder: Path) -> Iterator[Path]:
    path = folder / "hold"
    path.touch()
    yield path
    path.unlink(missing_ok=True)


def two_jobs(plane: ControlPlane, good: dict[str, Any], name: str) -> tuple[str, str]:
    """The ids of a job that has the device, held in its encode, and of one that waits for it."""
    first, second = f"{name}-first", f"{name}-second"
    plane.submit(first, good)
    plane.wait_until(lambda: ("encode", first) in plane.events, seconds=60)
    plane.submit(second, good)
    plane.wait_until(lambda: ("prepare", second) in plane.events, seconds=10)
    time.sleep(_SOON)
    return first, second


def test_a_job_is_prepared_while_another_has_the_device_and_waits_for_it(
    plane: ControlPlane, worker: Worker, good: dict[str, Any], folder: Path, hold: Path
) -> None:
    first, second = two_jobs(plane, good, "wait")
    assert ("denoise", second) not in plane.events and ("result", first) not in plane.events
    blamed = [path.stem for path in (folder / "spool" / "starts").iterdir()]
    assert blamed == [first]  # if the worker were killed now, the waiting job would be innocent
    assert len(worker.scratch()) == 2
    hold.unlink()
    assert "output" in plane.result(first) and "output" in plane.result(second)
    assert plane.batches and set(plane.batches) == {2}
    assert worker.scratch() == [] and list((folder / "spool" / "starts").iterdir()) == []


def test_a_waiting_job_is_cancelled_and_the_other_one_is_not(
    plane: ControlPlane, worker: Worker, good: dict[str, Any], hold: Path
) -> None:
    first, second = two_jobs(plane, good, "stop-waiting")
    plane.stop(second)
    plane.wait_until(lambda: "was stopped in queue" in worker.log_of(second), seconds=10)
    assert worker.seconds_until_stopped(second) < 1 and len(worker.scratch()) == 1
    hold.unlink()
    assert "output" in plane.result(first)
    assert plane.posts[second].results == [] and worker.scratch() == []


def test_a_rendering_job_is_cancelled_and_the_waiting_one_gets_the_device(
    plane: ControlPlane, worker: Worker, good: dict[str, Any], hold: Path
) -> None:
    first, second = two_jobs(plane, good, "stop-rendering")
    plane.stop(first)
    plane.wait_until(lambda: "was stopped in encode" in worker.log_of(first), seconds=10)
    hold.unlink()
    assert worker.seconds_until_stopped(first) < 1
    assert "output" in plane.result(second)
    assert plane.posts[first].results == [] and worker.scratch() == []


def test_a_clip_is_uploaded_while_the_next_one_renders(
    plane: ControlPlane, worker: Worker, bucket: Bucket, good: dict[str, Any]
) -> None:
    gate = threading.Event()
    slow = Fault(  # not broken: the request is passed on, and its whole answer once the gate opens
        "wait",
        when=lambda request: request.method == "PUT" and ".mp4" in request.target,
        then=lambda: gate.wait(15),
        after_bytes=sys.maxsize,
    )
    bucket.proxy.inject(slow)
    plane.submit("upload-first", good)
    try:
        plane.wait_until(lambda: ("publish", "upload-first") in plane.events, seconds=60)
        plane.submit("upload-second", good)
        plane.wait_until(lambda: ("denoise", "upload-second") in plane.events, seconds=10)
        assert ("result", "upload-first") not in plane.events
    finally:
        gate.set()
    assert "output" in plane.result("upload-first") and "output" in plane.result("upload-second")
    time.sleep(_SOON)
    assert sum(posts.after_result for posts in plane.posts.values()) == 0


def test_a_terminated_worker_finishes_both_of_its_jobs(
    good: dict[str, Any], tmp_path: Path
) -> None:
    with ControlPlane() as plane, started(plane, tmp_path / "worker", **_PREFETCH) as worker:
        for name in ("one", "two"):
            plane.submit(name, good)
        both = {("prepare", "one"), ("prepare", "two")}
        plane.wait_until(lambda: both <= set(plane.events), seconds=60)
        worker.process.send_signal(signal.SIGTERM)
        assert "output" in plane.result("one") and "output" in plane.result("two")
        assert worker.process.wait(15) == 0
        plane.wait_until(lambda: worker.survivors() == [], seconds=15)
        assert worker.scratch() == []
