"""Faults that a worker survives, and faults that end it, in the real loop: stops that arrive early,
Runpod's API down, an ffmpeg that hangs, a GPU that fails, a job that hangs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.services.control_plane import ControlPlane
from tests.worker_loop.worker import Worker, processes_of, started

FAULTY = "tests/worker_loop/faulty_worker.py"
BROKEN_EXIT = 75


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        yield plane


@pytest.fixture(scope="module")
def worker(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One worker for all tests of this file except the last. Each test finds it as the one before
    left it."""
    folder = tmp_path_factory.mktemp("lives") / "worker"
    limits = {"WAN_SAFETY": "off", "WAN_HANG_SECONDS": "5"}
    with started(plane, folder, entry=FAULTY, **limits) as worker:
        plane.wait_until(lambda: plane.polls > 0, seconds=60)
        yield worker


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def lines(worker: Worker) -> list[str]:
    return worker.log.read_text().splitlines()


def children(worker: Worker, name: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(") ")[2].split()[1]
            if int(parent) == worker.process.pid and name in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except (OSError, IndexError):
            continue
    return found


def test_a_stop_that_arrives_before_its_job_is_kept_for_it(
    plane: ControlPlane, worker: Worker, good: dict[str, Any]
) -> None:
    plane.stop("early")
    plane.wait_until(lambda: not plane.stops_wait, seconds=60)
    plane.submit("early", {**good, "duration": 15, "size": "1080p"})
    plane.submit("after-early", good)
    assert "output" in plane.result("after-early", seconds=60)
    assert plane.posts["early"].results == plane.posts["early"].progress == []
    assert "was cancelled before it arrived" in worker.log_of("early")
    plane.submit("early", good)  # the same id again, and nobody has stopped it this time
    assert "output" in plane.result("early")


@pytest.mark.parametrize("how", ["refused", 503, 429, 204])
def test_an_unreachable_api_costs_neither_a_core_nor_the_log(
    plane: ControlPlane, worker: Worker, good: dict[str, Any], how: str | int
) -> None:
    before, spent = len(lines(worker)), cpu_seconds(worker.process.pid)
    if how == "refused":
        plane.go_away()
    else:
        plane.refusal = int(how)
    refused = plane.refused
    time.sleep(1.5)
    spent = cpu_seconds(worker.process.pid) - spent
    told = [line for line in lines(worker)[before:] if "answer" in line]
    assert spent < 0.5 and plane.refused - refused < 20
    if how == "refused":
        plane.come_back()
    plane.refusal = None
    plane.submit(f"after-{how}", {**good, "seed": "x"})
    assert "seed" in plane.result(f"after-{how}", seconds=60)["error"]
    if how == 204:  # no job, for as long as the poll would be held
        return

    def said_again() -> bool:
        return any("answers again" in line for line in lines(worker)[before:])

    plane.wait_until(said_again, seconds=60)
    assert 1 <= len(told) <= 2 and "Runpod does not answer" in told[0]  # pings are independent


@pytest.mark.parametrize("fault", ["accelerator", "cublas", "cudnn"])
def test_a_job_that_the_device_failed_costs_itself_alone_if_the_device_answers(
    plane: ControlPlane, worker: Worker, good: dict[str, Any], fault: str
) -> None:
    plane.submit(fault, {**good, "prompt": fault})
    result = plane.result(fault)
    assert list(result) == ["error"] and result["error"].startswith("Internal error, reference ")
    plane.submit(f"after-{fault}", good)
    assert "output" in plane.result(f"after-{fault}")


def test_a_library_that_finds_no_memory_is_out_of_memory(
    plane: ControlPlane, worker: Worker, good: dict[str, Any]
) -> None:
    plane.submit("no-room", {**good, "prompt": "no room"})
    assert plane.result("no-room")["error"].startswith("The worker has too little GPU memory")


def test_a_paused_ffmpeg_costs_its_job_alone(
    plane: ControlPlane, worker: Worker, good: dict[str, Any]
) -> None:
    plane.submit("still", {**good, "duration": 15, "size": "1080p"})
    plane.wait_until(lambda: bool(children(worker, "ffmpeg")), seconds=60)
    os.kill(children(worker, "ffmpeg")[0], signal.SIGSTOP)
    assert plane.result("still", seconds=60) == {"error": "The clip could not be encoded"}
    assert children(worker, "ffmpeg") == [] and worker.scratch() == []
    plane.submit("after-still", good)
    assert "output" in plane.result("after-still")


def test_a_worker_with_a_broken_device_takes_no_other_job_and_ends(
    plane: ControlPlane, worker: Worker, good: dict[str, Any]
) -> None:
    plane.submit("broken", {**good, "prompt": "cublas, broken"})
    plane.submit("next", good)
    result = plane.result("broken")
    assert result["error"].startswith("Internal error, reference ") and result["stopPod"] is True
    assert worker.process.wait(60) == BROKEN_EXIT
    assert "next" not in plane.taken
    plane.wait_until(lambda: processes_of(worker.process.pid) == [], seconds=60)
    assert "this worker ends: The worker's device broke" in worker.log.read_text()
