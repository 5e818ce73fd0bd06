"""Counts the cores that this process may use, of the machine or of its container."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_QUOTAS = (
    (Path("/sys/fs/cgroup/cpu.max"),),  # version 2: quota and period in one line
    tuple(  # version 1
        Path("/sys/fs/cgroup/cpu") / name for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    ),
)


def count() -> int:
    """The number of cores, at least 1. A quota of 2.5 cores counts as two, because a third thread
    would wait half of the time. Containers on rented machines see all cores of the host, but may
    use only some."""
    counts = [os.cpu_count() or 1]
    with suppress(AttributeError):  # not Linux
        counts.append(len(os.sched_getaffinity(0)))
    for paths in _QUOTAS:
        with suppress(OSError, ValueError, ZeroDivisionError):
            # `max` or -1 means no limit
            quota, period = (int(word) for path in paths for word in path.read_text().split())
            if quota > 0:
                counts.append(quota // period)
    return max(1, min(counts))
