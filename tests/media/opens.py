"""Tells whether a file was opened, from the kernel (inotify)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_IN_OPEN = 0x20


@contextmanager
def opens_of(path: Path) -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether anyone has opened `path` since."""
    libc = ctypes.CDLL(None, use_errno=True)
    watcher = libc.inotify_init1(os.O_NONBLOCK)
    assert watcher >= 0 and libc.inotify_add_watch(watcher, os.fsencode(path), _IN_OPEN) >= 0

    def opened() -> bool:
        try:
            return bool(os.read(watcher, 4096))
        except BlockingIOError:
            return False

    try:
        yield opened
    finally:
        os.close(watcher)
