"""The peak memory in the summary of a job."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from wan_engine.runtime import memory


def test_a_containers_limit_counts_if_it_is_lower(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = memory.host_bytes()
    for text, expected in (("max", whole), (str(10**8), 10**8), (str(2**62), whole)):
        (tmp_path / "memory.max").write_text(f"{text}\n")
        monkeypatch.setattr(memory, "_CGROUP_LIMITS", (tmp_path / "memory.max", tmp_path / "no"))
        assert memory.host_bytes() == expected


def test_a_peak_is_reported_after_it_has_passed() -> None:
    memory.reset_peaks()
    before = memory.peaks()["host"]
    block = np.ones(100_000_000, np.uint8)
    del block
    assert memory.peaks()["host"] >= before + 90


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can forget")
def test_a_new_job_does_not_show_the_peak_of_the_one_before() -> None:
    block = np.ones(200_000_000, np.uint8)
    with_block = memory.peaks()["host"]
    del block
    memory.reset_peaks()
    assert memory.peaks()["host"] < with_block - 150


def test_without_proc_the_peak_of_the_process_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown = memory.peaks()["host"]
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "absent")
    assert memory.peaks()["host"] == pytest.approx(shown, rel=0.5)


def test_a_second_job_does_not_reset_the_peak_of_the_first() -> None:
    with memory.measured():
        block = np.ones(200_000_000, np.uint8)
        with_block = memory.peaks()["host"]
        del block
        with memory.measured():
            assert memory.peaks()["host"] >= with_block - 2  # MB: other threads free some too


@pytest.mark.parametrize("named", ["empty_host_cache", "_host_emptyCache", None])
def test_unused_pinned_memory_is_released_too(
    named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    parts = {"accelerator": {}, "_C": {}, "cuda": {"empty_cache": lambda: called.append("gpu")}}
    if named:
        part = "_C" if named.startswith("_") else "accelerator"
        parts[part][named] = lambda: called.append("host")
    torch = SimpleNamespace(**{name: SimpleNamespace(**found) for name, found in parts.items()})
    monkeypatch.setattr(memory, "_cuda", lambda: torch)
    memory.free_accelerator()
    assert called == (["gpu", "host"] if named else ["gpu"])
