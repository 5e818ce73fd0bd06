"""Watches every job of this process from a separate thread, and reports a job without progress for
longer than its stage may take.

Every call of `Control` is a sign of life. A job that waits for the device calls it all the time, so
a silent job is a working one. The watchdog knows nothing about the work, or about what is done
after a hang.
"""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from wan_engine.control import Control
from wan_engine.runtime.freeze_guard import FreezeGuard

_STDERR = 2
_TICK_SECONDS = 0.5
LOAD_TIMES = 6
"""A load may take this many times WAN_HANG_SECONDS, because reading weights reports no progress:
half an hour for 126 GB at 70 MB/s."""

_FROZEN_SECONDS = 60.0
"""The longest time that all of Python may stand still during a job, because a library holds the
interpreter's lock. Loads are excepted."""


@dataclass(frozen=True)
class Hang:
    """A job that hangs: its stage, and the seconds since its last progress."""

    control: Control
    stage: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.control.job_id} hangs in {self.stage}, for {self.seconds:.0f} s now"


class Watchdog:
    """Calls `on_hang` once for each job that hangs, from its own thread.

    A job hangs when it is silent for longer than `limit_seconds`, or when it still works that long
    after it was told to end. `frozen` also ends the process if no Python thread runs any more, with
    all stacks on stderr.
    """

    def __init__(self, on_hang: Callable[[Hang], None], *, frozen: bool = False) -> None:
        self._on_hang = on_hang
        self._frozen = FreezeGuard() if frozen else None
        self._watched: dict[Control, _Watched] = {}
        self._lock = threading.Lock()
        self._some = threading.Event()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    @contextmanager
    def watching(self, control: Control) -> Iterator[None]:
        """Watch a job while this context is open."""
        with self._lock:
            self._watched[control] = _Watched(control)
            self._arm(list(self._watched.values()))  # it may freeze before the first check
            self._some.set()
        try:
            yield
        finally:
            with self._lock:
                del self._watched[control]
                if not self._watched:
                    self._some.clear()

    def _run(self) -> None:
        while True:
            self._disarm()
            self._some.wait()
            before = time.monotonic()
            while self._some.is_set():
                time.sleep(_TICK_SECONDS)
                now = time.monotonic()
                # The gap is not the jobs' fault: this process was paused or got no CPU time.
                self._tick(min(now - before, 2 * _TICK_SECONDS))
                before = now

    def _tick(self, passed_seconds: float) -> None:
        with self._lock:
            watched = list(self._watched.values())
        for one in watched:
            one.wait(passed_seconds)
        self._arm(watched)
        hanging = [one for one in watched if one.hangs and not one.told]
        if hanging:
            # Other jobs may wait for a lock that it holds.
            worst = max(hanging, key=lambda one: (one.control.has_device, one.silent_seconds))
            worst.told = True
            stage = worst.control.stage or "no stage"
            self._on_hang(Hang(worst.control, stage, worst.waited_seconds))

    def _arm(self, watched: list[_Watched]) -> None:
        if not self._frozen or not watched:
            return
        loads = any(one.control.stage == "load" for one in watched)
        longest = max(limit_seconds(one.control) for one in watched)
        self._frozen.allow(longest if loads else min(longest, _FROZEN_SECONDS))

    def _disarm(self) -> None:
        with self._lock:
            if self._frozen and not self._watched:
                self._frozen.allow(None)


class _Watched:
    """Seconds since the last sign of life, and since the job was told to end, counted in ticks."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.told = False
        self.silent_seconds = self.overdue_seconds = 0.0
        self._sign_at = control.sign_at

    def wait(self, seconds: float) -> None:
        if self.control.sign_at != self._sign_at:
            self._sign_at, self.silent_seconds = self.control.sign_at, 0.0
        else:
            self.silent_seconds += seconds
        self.overdue_seconds += seconds if self.control.must_end else 0.0

    @property
    def waited_seconds(self) -> float:
        return max(self.silent_seconds, self.overdue_seconds)

    @property
    def hangs(self) -> bool:
        return self.waited_seconds > limit_seconds(self.control)


def limit_seconds(control: Control) -> float:
    """How long a job may go without progress in its present stage."""
    if control.stage == "load":
        return max(control.hang_seconds * LOAD_TIMES, control.step_seconds)
    return max(control.hang_seconds, control.step_seconds)


def dump_stacks() -> None:
    """Write the stack of every thread to stderr."""
    faulthandler.dump_traceback(_STDERR, all_threads=True)
