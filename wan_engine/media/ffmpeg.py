"""The ffmpeg that comes with pip (imageio-ffmpeg): where it is, and how it is supervised."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
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
_FINISH_SECONDS = 300  # from the last frame; a 15 s clip of 1080p takes a few on a slow machine


class Failed(Exception):
    """ffmpeg ended badly; the text is what it last said, for the log and never for a caller."""


def executable() -> str:
    """Path of the binary. Raises RuntimeError when the package has none for this machine."""
    return str(imageio_ffmpeg.get_ffmpeg_exe())


def version() -> str:
    """The binary's own first line. Raises `ConfigurationError` when it does not run."""
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
    """An ffmpeg that turns bytes into bytes while its owner does something else."""

    def __init__(self, arguments: Sequence[str], frames: NDArray[np.uint8]) -> None:
        """Starts it; `frames` go to its standard input."""
        self._process = subprocess.Popen(
            [executable(), "-hide_banner", "-loglevel", "error", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        _give_way(self._process)
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
        """What it wrote, when it has ended. Raises `Failed`, or what `control.checkpoint` says."""
        while not self.done:
            self._thread.join(_POLL_SECONDS)
            control.checkpoint()
        if status := self._process.returncode:
            last_words = self._errors[-_LAST_WORDS_BYTES:].decode("utf-8", "replace").strip()
            raise Failed(last_words or f"it ended with status {status}")
        return self._output

    def close(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._thread.join()

    def _communicate(self, data: memoryview) -> None:
        self._output, self._errors = self._process.communicate(data)  # type: ignore[arg-type]  # any buffer


@contextmanager
def running(
    arguments: Sequence[str], control: Control, *, seconds: float | None = None
) -> Iterator[IO[bytes]]:
    """Run ffmpeg with `arguments` and give its standard input; leaving the block waits for its end.

    It is killed when the job is cancelled or late, when `seconds` have passed and when the block
    raises. Raises `Failed` with its last words, or what `control.checkpoint()` says.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [executable(), "-hide_banner", "-loglevel", "error", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        assert process.stdin is not None
        _give_way(process)
        try:
            with control.watch(process.kill, seconds) as watch:
                yield process.stdin
                with suppress(BrokenPipeError):  # it ended early; its status says why
                    process.stdin.close()
                status = process.wait(_FINISH_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"it did not end within {_FINISH_SECONDS} seconds") from error
        finally:
            process.kill()
            process.wait()
            with suppress(BrokenPipeError):
                process.stdin.close()
        control.checkpoint()
        if watch.expired:
            raise Failed(f"it took longer than {seconds:g} seconds")
        if status != 0:
            raise Failed(_last_words(errors) or f"it ended with status {status}")


def _give_way(process: subprocess.Popen[bytes]) -> None:
    """What makes the frames goes first: an encoder thread that takes a core from it stalls all of
    its threads, while the encoder catches up whenever they wait."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)


def _last_words(errors: IO[bytes]) -> str:
    size = errors.seek(0, 2)
    errors.seek(max(0, size - _LAST_WORDS_BYTES))
    return errors.read().decode("utf-8", "replace").strip()
