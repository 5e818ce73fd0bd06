"""Starts Python programs as processes. Tests have a faster start (`tests/warm.py`)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).parents[2]


class Process(Protocol):
    """The part of `subprocess.Popen` that is used."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, number: int) -> None: ...

    def kill(self) -> None: ...


class Start(Protocol):
    """Starts `program`, which is what follows `python` in a shell, with options of `Popen`."""

    def __call__(self, program: Sequence[str], **options: Any) -> Process: ...


def cold(program: Sequence[str], **options: Any) -> Process:
    """A new interpreter."""
    return subprocess.Popen([sys.executable, *program], **options)
