"""The watchdog finds jobs that hang, and spares those that are slow, wait, or were paused with the
whole process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from wan_engine.control import Control
from wan_engine.runtime import watchdog
from wan_engine.runtime.watchdog import Hang, Watchdog, limit_seconds

ROOT = Path(__file__).parents[2]


class Told:
    """Records reported hangs. The watchdog's clock is `tick`, not the machine's."""

    def __init__(self) -> None:
        self.hangs: list[Hang] = []
        self.dog = Watchdog(self.hangs.append)

    def tick(self, seconds: float) -> list[str]:
        self.dog._tick(seconds)
        return [hang.control.job_id for hang in self.hangs]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(watchdog, "_TICK_SECONDS", 3600.0)
    return Told()


def test_a_silent_job_hangs_once_its_time_is_over(told: Told) -> None:
    control = Control("a", hang_seconds=10)
    control.enter("denoise")
    with told.dog.watching(control):
        assert told.tick(9) == []
        assert told.tick(2) == ["a"]
        assert told.tick(100) == ["a"]  # reported once
    assert str(told.hangs[0]) == "a hangs in denoise, for 11 s now"


SIGNS: list[Callable[[Control], None]] = [
    lambda control: control.progress("denoise", 1, 4),
    lambda control: control.enter("denoise"),
    lambda control: control.checkpoint(),
]


@pytest.mark.parametrize("sign", SIGNS)
def test_every_sign_of_life_restarts_the_time(told: Told, sign: Callable[[Control], None]) -> None:
    control = Control("a", hang_seconds=10)
    with told.dog.watching(control):
        for _ in range(5):
            assert told.tick(9) == []
            sign(control)
        assert told.tick(1) == []


def test_signs_of_one_job_do_not_keep_another_alive(told: Told) -> None:
    hangs, uploads = Control("a", hang_seconds=10), Control("b", hang_seconds=10)
    with told.dog.watching(hangs), told.dog.watching(uploads):
        for _ in range(3):
            uploads.checkpoint()
            told.tick(6)
    assert [hang.control.job_id for hang in told.hangs] == ["a"]


def test_the_job_with_the_device_is_blamed_before_those_that_wait_for_it(
    told: Told,
) -> None:
    waits, works = Control("waits", hang_seconds=10), Control("works", hang_seconds=10)
    works.has_device = True
    with told.dog.watching(waits), told.dog.watching(works):
        told.tick(11)
    assert told.hangs[0].control is works


def test_a_job_that_continues_after_its_end_hangs_whatever_it_reports(told: Told) -> None:
    control = Control("a", hang_seconds=10)
    control.cancel()
    with told.dog.watching(control):
        for _ in range(3):
            control.enter("denoise")
            told.tick(5)
    assert [hang.control.job_id for hang in told.hangs] == ["a"]


def test_an_ended_job_is_not_watched(told: Told) -> None:
    control = Control("a", hang_seconds=10)
    with told.dog.watching(control):
        told.tick(1)
    assert told.tick(100) == []


@pytest.mark.parametrize(
    ("stage", "step_seconds", "seconds"),
    [("denoise", 0, 10), ("denoise", 40, 40), ("load", 0, 60), ("load", 90, 90), ("decode", 5, 10)],
)
def test_a_load_and_slow_steps_have_more_time(
    stage: str, step_seconds: float, seconds: float
) -> None:
    control = Control("a", hang_seconds=10)
    control.step_seconds = step_seconds
    control.enter(stage)
    assert limit_seconds(control) == seconds


def test_the_real_clock_is_used_and_a_pause_of_the_whole_process_is_not_counted() -> None:
    hangs: list[Hang] = []
    found = threading.Event()
    dog = Watchdog(lambda hang: (hangs.append(hang), found.set()))  # type: ignore[arg-type, return-value]
    control = Control("a", hang_seconds=1)
    with dog.watching(control):
        assert found.wait(30)
    assert hangs[0].seconds < 3


FREEZES = """
import ctypes, sys, time
from wan_engine.control import Control
from wan_engine.runtime.watchdog import Watchdog
dog = Watchdog(lambda hang: None, frozen=True)
control = Control("a", hang_seconds=1)
with dog.watching(control):
    pass
time.sleep(2)  # without a job, nothing ends it
print("idle", flush=True)
with dog.watching(control):
    ctypes.PyDLL(None).sleep(60)
"""


def test_a_process_in_which_python_is_blocked_ends_with_its_stacks_logged() -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", FREEZES], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == signal.SIGUSR2 and time.monotonic() - began < 50
    assert done.stdout == "idle\n" and "most recent call first" in done.stderr
    assert "No thread of Python has run for" in done.stderr


WORKS = """
import sys, time
from wan_engine.control import Control
from wan_engine.runtime.watchdog import Watchdog
control = Control("a", hang_seconds=4)
with Watchdog(lambda hang: None, frozen=True).watching(control):
    print("works", flush=True)
    sys.stdin.readline()
    control.checkpoint()
    time.sleep(1)
print("done", flush=True)
"""


@pytest.fixture
def works() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WORKS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        assert process.stdout is not None and process.stdout.readline() == "works\n"
        yield process
        process.kill()


def beside(process: subprocess.Popen[str]) -> int:
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    (child,) = " ".join(task.read_text("ascii") for task in tasks).split()
    return int(child)


@pytest.mark.parametrize("whole", [False, True])
def test_a_process_that_is_paused_for_long_continues_its_job(
    works: subprocess.Popen[str], whole: bool
) -> None:
    stopped = [works.pid, beside(works)] if whole else [works.pid]
    for process in stopped:
        os.kill(process, signal.SIGSTOP)
    time.sleep(6)
    for process in stopped:
        os.kill(process, signal.SIGCONT)
    out, errors = works.communicate("go on\n", timeout=30)
    assert (works.returncode, out, errors) == (0, "done\n", "")


def test_the_watching_process_ends_with_the_watched_one(
    works: subprocess.Popen[str],
) -> None:
    child = Path("/proc") / str(beside(works))
    works.kill()
    works.wait()
    until = time.monotonic() + 30
    while child.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not child.exists()


def test_a_killed_watching_process_is_started_again(works: subprocess.Popen[str]) -> None:
    first = beside(works)
    os.kill(first, signal.SIGKILL)
    until = time.monotonic() + 30
    found = first
    while found == first and time.monotonic() < until:
        time.sleep(0.05)
        with suppress(ValueError):  # between the two there is none
            found = beside(works)
    assert found != first
