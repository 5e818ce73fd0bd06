"""The ffmpeg that comes with pip (imageio-ffmpeg): where it is, and how it is supervised."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

import imageio_ffmpeg  # type: ignore[import-untyped]

from wan_engine.control import Control
from wan_engine.errors import ConfigurationError

_NICENESS = 10
_LAST_WORDS_BYTES = 2000
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
        # What makes the frames goes first: an encoder thread that takes a core from it stalls all
        # of its threads, while the encoder catches up whenever they wait.
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
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


def _last_words(errors: IO[bytes]) -> str:
    size = errors.seek(0, 2)
    errors.seek(max(0, size - _LAST_WORDS_BYTES))
    return errors.read().decode("utf-8", "replace").strip()
