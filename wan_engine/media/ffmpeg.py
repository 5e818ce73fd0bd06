"""Finds the ffmpeg of the package imageio-ffmpeg, runs it and watches it.

An ffmpeg that does nothing for `Control.hang_seconds` is killed, so that only its own job fails.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from wan_engine.control import Control
from wan_engine.errors import ConfigurationError

_NICENESS = 10
_LAST_WORDS_BYTES = 2000
_POLL_SECONDS = 0.05
_PART_BYTES = 1 << 20


class Failed(Exception):
    """ffmpeg failed. The text is its last output, for the log and never for a caller.

    `here`: this machine is the cause, not the input: ffmpeg did not start, was killed, or had no
    room or no time. `late`: it ran out of time.
    """

    def __init__(self, why: str, *, here: bool = False, late: bool = False) -> None:
        super().__init__(why)
        self.here = here or "No space left" in why
        self.late = late


def executable() -> str:
    """The path of the binary. Raises RuntimeError if the package has none for this machine."""
    return str(imageio_ffmpeg.get_ffmpeg_exe())


def version() -> str:
    """The first line that the binary prints. Raises `ConfigurationError` if it does not run."""
    try:
        command = [executable(), "-version"]
        output = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise ConfigurationError(
            f"ffmpeg does not run ({error}). Reinstall imageio-ffmpeg, or name a binary in "
            "IMAGEIO_FFMPEG_EXE."
        ) from error
    return output.stdout.partition(" Copyright")[0].strip()


def has_filter(name: str) -> bool:
    """Whether the binary was built with this filter."""
    command = [executable(), "-hide_banner", "-h", f"filter={name}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.startswith(f"Filter {name}")


class Filter:
    """An ffmpeg that converts bytes to bytes while its owner does something else."""

    def __init__(self, arguments: Sequence[str], frames: NDArray[np.uint8]) -> None:
        """Start ffmpeg; `frames` go to its standard input. Raises `Failed`."""
        self._process = _started(arguments, subprocess.PIPE, subprocess.PIPE)
        self._output = self._errors = b""
        data = np.ascontiguousarray(frames).reshape(-1).data
        self._thread = threading.Thread(
            target=self._communicate, args=(data,), name="ffmpeg", daemon=True
        )
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self, control: Control) -> bytes:
        """The output of ffmpeg, once it has ended. Raises `Failed`, or what `control.checkpoint`
        raises."""
        timer = _HangTimer(control)
        while not self.done:
            self._thread.join(_POLL_SECONDS)
            if timer.expired(_ticks(self._process)):
                self.close()
                raise _hangs(control)
        if status := self._process.returncode:
            last_words = self._errors[-_LAST_WORDS_BYTES:].decode("utf-8", "replace").strip()
            raise Failed(last_words or f"it ended with status {status}")
        return self._output

    def close(self) -> None:
        """End it in any state."""
        self._process.kill()
        self._thread.join()

    def _communicate(self, data: memoryview) -> None:
        self._output, self._errors = self._process.communicate(data)  # type: ignore[arg-type]  # any buffer


class Input:
    """The standard input of an ffmpeg. It waits at most `Control.hang_seconds` for ffmpeg to do
    something."""

    def __init__(self, process: subprocess.Popen[bytes], control: Control) -> None:
        assert process.stdin is not None
        self._process, self._pipe, self._control = process, process.stdin, control
        os.set_blocking(self._pipe.fileno(), False)

    def write(self, data: memoryview) -> None:
        """Write all of `data`, of any shape. Raises BrokenPipeError if ffmpeg takes no more,
        `Failed` if it hangs, or what `control.checkpoint` raises."""
        rest, timer = data.cast("B") if data.nbytes else data, _HangTimer(self._control)
        room = select.poll()
        room.register(self._pipe.fileno(), select.POLLOUT)
        while rest.nbytes:
            if not room.poll(_POLL_SECONDS * 1000):
                if timer.expired(_ticks(self._process)):
                    raise _hangs(self._control)
                continue
            with suppress(BlockingIOError):  # room for less than a page
                rest = rest[os.write(self._pipe.fileno(), rest[:_PART_BYTES]) :]
                timer = _HangTimer(self._control)
        self._control.checkpoint()

    def finish(self) -> int:
        """Close it, wait for ffmpeg to end and return its status. Raises what `write` raises."""
        with suppress(BrokenPipeError):  # it ended early; its status says why
            self._pipe.close()
        timer = _HangTimer(self._control)
        while (status := self._process.poll()) is None:
            time.sleep(_POLL_SECONDS / 5)
            if timer.expired(_ticks(self._process)):
                raise _hangs(self._control)
        return status

    def close(self) -> None:
        """End ffmpeg in any state."""
        self._process.kill()
        self._process.wait()
        with suppress(BrokenPipeError):
            self._pipe.close()


def _hangs(control: Control) -> Failed:
    return Failed(f"it did nothing for {control.hang_seconds:g} seconds", here=True)


class _HangTimer:
    """Watches whether a process has done nothing for `Control.hang_seconds`."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._ticks = -1
        self._waited_seconds = 0.0
        self._looked_at = time.monotonic()

    def expired(self, ticks: int) -> bool:
        """`ticks` is how much it has worked. Raises what `control.checkpoint` says."""
        self._control.checkpoint()
        now = time.monotonic()
        # A long gap is this process's own: it was paused, or got no CPU time.
        self._waited_seconds += min(now - self._looked_at, 1.0)
        self._looked_at = now
        if ticks != self._ticks:
            self._ticks, self._waited_seconds = ticks, 0.0
        return self._waited_seconds > self._control.hang_seconds


def _ticks(process: subprocess.Popen[bytes]) -> int:
    """The CPU time of the process, in ticks of the system, or 0 if unknown."""
    try:
        with open(f"/proc/{process.pid}/stat") as file:  # noqa: PTH123 - twenty times a second
            fields = file.read().rpartition(") ")[2].split()
        return int(fields[11]) + int(fields[12])
    except (OSError, ValueError, IndexError):
        return 0


@contextmanager
def running(
    arguments: Sequence[str], control: Control, *, seconds: float | None = None
) -> Iterator[Input]:
    """Run ffmpeg with `arguments` and yield its standard input. Leaving the block waits for its
    end.

    ffmpeg is killed when the job is cancelled or late, when `seconds` have passed, when it hangs
    and when the block raises. Raises `Failed` with its last output, or what `control.checkpoint()`
    raises.
    """
    with tempfile.TemporaryFile() as errors:
        process = _started(arguments, subprocess.DEVNULL, errors)
        pipe = Input(process, control)
        try:
            with control.watch(process.kill, seconds) as watch:
                yield pipe
                status = pipe.finish()
        finally:
            pipe.close()
        control.checkpoint()
        if watch.expired:
            raise Failed(f"it took longer than {seconds:g} seconds", here=True, late=True)
        if status != 0:
            told = _last_words(errors) or f"it ended with status {status}"
            raise Failed(told, here=status < 0)


def _started(
    arguments: Sequence[str], output: int, errors: int | IO[bytes]
) -> subprocess.Popen[bytes]:
    try:
        process = subprocess.Popen(
            [executable(), "-hide_banner", "-loglevel", "error", *arguments],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=errors,
        )
    except OSError as error:
        raise Failed(f"it did not start: {error}", here=True) from error
    _give_way(process)
    return process


def _give_way(process: subprocess.Popen[bytes]) -> None:
    """Lower its priority, so that the code that makes the frames runs first. If an encoder thread
    takes a core from it, all its threads stall, while the encoder catches up whenever they wait."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)


def _last_words(errors: IO[bytes]) -> str:
    size = errors.seek(0, 2)
    errors.seek(max(0, size - _LAST_WORDS_BYTES))
    return errors.read().decode("utf-8", "replace").strip()
