"""Measures free memory and the peak memory of a job, of the process and of the accelerator."""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_CLEAR_PEAK = "5"  # proc(5): resets the peak resident set size to what it is now
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),  # version 2
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),  # version 1
)
_CGROUP_USED = (
    Path("/sys/fs/cgroup/memory.current"),
    Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
_MEMINFO = Path("/proc/meminfo")

_lock = threading.Lock()
_jobs = 0


def host_bytes() -> int:
    """Memory in bytes of this machine, or of the container that this process is in."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _CGROUP_LIMITS:
        with suppress(OSError):
            if (text := path.read_text().strip()).isdigit():  # `max` if there is no limit
                sizes.append(int(text))
    return min(sizes)


def available_bytes() -> int:
    """Free memory in bytes, within the container's limit."""
    free = [host_bytes()]
    with suppress(OSError, StopIteration, ValueError):
        lines = _MEMINFO.read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        free.append(int(line.split()[1]) * 1024)
    for limit, used in zip(_CGROUP_LIMITS, _CGROUP_USED, strict=True):
        with suppress(OSError):
            if (most := limit.read_text().strip()).isdigit():
                free.append(int(most) - int(used.read_text()))
    return max(0, min(free))


@contextmanager
def measured() -> Iterator[None]:
    """Begin a new measurement for one job, unless another job is being measured.

    The peak is one per process, so concurrent jobs share it. It is the peak since the first of them
    began, and never too low.
    """
    global _jobs
    with _lock:
        if _jobs == 0:
            reset_peaks()
        _jobs += 1
    try:
        yield
    finally:
        with _lock:
            _jobs -= 1


def reset_peaks() -> None:
    """Reset the peaks, if the system lets a process do that."""
    with suppress(OSError):  # the peak since the process started stays
        _CLEAR.write_text(_CLEAR_PEAK)
    if torch := _cuda():
        torch.cuda.reset_peak_memory_stats()


def peaks() -> dict[str, int]:
    """Peaks in MB: `host` of this process, and `gpu` of torch's tensors if there is a GPU."""
    found = {"host": _host_peak_bytes() // 10**6}
    if torch := _cuda():
        found["gpu"] = torch.cuda.max_memory_allocated() // 10**6
    return found


def free_accelerator() -> None:
    """Free unused memory of the device, and unused pinned host memory, because a leaner recipe pins
    as much again."""
    gc.collect()
    if torch := _cuda():
        torch.cuda.empty_cache()
        # The public name is newer than the function, and a build may have neither.
        public = getattr(torch.accelerator, "empty_host_cache", None)
        empty = public or getattr(torch._C, "_host_emptyCache", None)
        if empty is not None:
            empty()


def _host_peak_bytes() -> int:
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration, IndexError, ValueError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cuda() -> Any:
    """torch, if it is imported and uses a GPU."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None
