"""Kills this process from a second one if no Python thread runs any more. A library can hold the
interpreter's lock for ever, and then no code in this process can act.

It counts the seconds without a sign of life in which this process could have run. A process that
was paused (Ctrl-Z, `docker pause`) simply continues afterwards.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

_STDERR = 2
_TICK_SECONDS = 0.5
_DUMP_SECONDS = 5.0  # a process that the signal does not end by then is killed
_END = signal.SIGUSR2
_STOPPED = ("T", "t")  # proc(5): stopped by a signal, stopped by a debugger


class FreezeGuard:
    """Ends this process, with all stacks on stderr, if `allow` is not called in time."""

    def __init__(self) -> None:
        _end_at_signal()
        self._lock = threading.Lock()
        self._beside = _begin()

    def allow(self, seconds: float | None) -> None:
        """Allow `seconds` until the next call. None sets no limit."""
        line = f"{seconds or 0:g}\n".encode()
        with self._lock:
            if self._beside.poll() is not None:  # the guard was killed
                self._beside = _begin()
            assert self._beside.stdin is not None
            # The guard may be paused, or ending.
            with suppress(BlockingIOError, BrokenPipeError):
                os.write(self._beside.stdin.fileno(), line)


@cache  # a second call would replace the handler that writes stacks by the one that kills
def _end_at_signal() -> None:
    """Install two handlers in C, because Python's would wait for the lock. The first writes the
    stacks. The second, which it calls, ends even the first process of a container, which no SIGKILL
    from inside reaches."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal(int(_END), ctypes.cast(libc._exit, ctypes.c_void_p))
    faulthandler.register(_END, file=_STDERR, all_threads=True, chain=True)


def _begin() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-S", __file__, str(os.getpid())]
    beside = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0)
    assert beside.stdin is not None
    os.set_blocking(beside.stdin.fileno(), False)
    return beside


def watch(process: int, signs: int) -> None:
    """Read lines from the descriptor `signs`. Each contains the seconds that may pass until the
    next (0: no limit). Ends `process` if it does not write in time. Returns when `signs` ends."""
    allowed = silent = 0.0
    with selectors.DefaultSelector() as selector:
        selector.register(signs, selectors.EVENT_READ)
        before = time.monotonic()
        while os.getppid() == process:
            if selector.select(_TICK_SECONDS):
                lines = os.read(signs, 4096).split()
                if not lines:
                    return
                allowed, silent = float(lines[-1]), 0.0
            now = time.monotonic()
            # If the whole container is paused, this process is paused as well.
            silent += 0 if _is_stopped(process) else min(now - before, 2 * _TICK_SECONDS)
            before = now
            if allowed and silent > allowed:
                _end(process, silent)
                return


def _is_stopped(process: int) -> bool:
    try:
        line = Path(f"/proc/{process}/stat").read_text("utf-8", errors="replace")
        return line.rpartition(")")[2].split()[0] in _STOPPED
    except (OSError, IndexError):  # not Linux, or the process has just ended
        return False


def _end(process: int, silent_seconds: float) -> None:
    print(
        f"No thread of Python has run for {silent_seconds:.0f} s while a job was at work: process "
        f"{process} is ended, its stacks follow.",
        file=sys.stderr,
        flush=True,
    )
    with suppress(ProcessLookupError):  # the process may end by itself meanwhile
        os.kill(process, _END)
        until = time.monotonic() + _DUMP_SECONDS
        while os.getppid() == process and time.monotonic() < until:
            time.sleep(0.1)
        if os.getppid() == process:
            os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    for ends_the_group in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # The guarded process decides what these signals mean.
        signal.signal(ends_the_group, signal.SIG_IGN)
    watch(int(sys.argv[1]), sys.stdin.fileno())
