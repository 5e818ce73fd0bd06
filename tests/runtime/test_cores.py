"""The number of cores that a container may use, not that of its host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wan_engine.runtime import cores


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 128 cores, all available to this process."""
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(128)), raising=False)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "1600000 100000"}, 16),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, 128),
        ({"cpu.max": ""}, 128),
        ({"cpu.cfs_quota_us": "400000", "cpu.cfs_period_us": "50000"}, 8),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 128),
        ({"cpu.cfs_quota_us": "400000", "cpu.cfs_period_us": "0"}, 128),
        ({}, 128),
    ],
)
@pytest.mark.usefixtures("host")
def test_a_containers_quota_counts_if_it_is_lower(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")
    quotas = tuple(tuple(tmp_path / path.name for path in paths) for paths in cores._QUOTAS)
    monkeypatch.setattr(cores, "_QUOTAS", quotas)
    assert cores.count() == expected


def test_cores_outside_the_process_affinity_are_not_counted(
    host: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "_QUOTAS", ())
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4, 5}, raising=False)
    assert cores.count() == 3


def test_this_machine_has_at_least_one() -> None:
    assert 1 <= cores.count() <= (os.cpu_count() or 1)
