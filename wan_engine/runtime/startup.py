"""Measures the stages of a process's start, and lets SIGTERM end the process meanwhile.

The caller names the stages.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

_STAT = Path("/proc/self/stat")
_IMPORTED = time.monotonic()
_AGE_AT_IMPORT: float


def end_when_told() -> None:
    """Let SIGTERM end this process at once. The kernel passes signals to the first process (PID 1)
    only if they have a handler. A server sets its own handler later."""
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda number, _frame: os._exit(128 + number))


def age_seconds() -> float:
    """Seconds since the system started this process, to a hundredth. Without /proc, since this
    module was imported, which leaves out Python's own start.

    A program that replaced a shell (`exec`) is as old as the shell.
    """
    return _AGE_AT_IMPORT + time.monotonic() - _IMPORTED


def _age_now() -> float:
    try:
        # proc(5): field 22, counted after the name, which may hold spaces and brackets
        ticks = int(_STAT.read_text().rpartition(") ")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


_AGE_AT_IMPORT = _age_now()


class Startup:
    """The seconds of each stage, in order. A stage begins where the one before it ended. `on_done`
    is called at the end of each."""

    def __init__(self, on_done: Callable[[], object] = lambda: None) -> None:
        self.on_done = on_done
        self.stage_seconds: dict[str, float] = {}
        self._ended = 0.0

    def done(self, stage: str) -> None:
        """End `stage` here."""
        now = age_seconds()
        spent = self.stage_seconds.get(stage, 0.0)
        self.stage_seconds[stage] = spent + now - self._ended
        self._ended = now
        self.on_done()

    @property
    def seconds(self) -> float:
        """Seconds from the start of the process to the end of the last stage."""
        return self._ended

    def __str__(self) -> str:
        stages = ", ".join(f"{name} {took:.1f}" for name, took in self.stage_seconds.items())
        return f"{self.seconds:.1f} s after its start ({stages})"
