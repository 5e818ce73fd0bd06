"""A job that kills its worker is not retried for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from tests.storage.stores import ODD_IDS
from wan_engine.errors import JobRefused
from wan_engine.storage import CrashCounts

KILLED = """
import os, signal, sys
from pathlib import Path
from wan_engine.storage import CrashCounts
CrashCounts(Path(sys.argv[1])).begin("job-1")
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(folder: Path) -> int:
    return subprocess.run([sys.executable, "-c", KILLED, folder], check=False).returncode


def test_a_job_that_killed_two_workers_is_refused(tmp_path: Path) -> None:
    assert [killed(tmp_path), killed(tmp_path)] == [-signal.SIGKILL] * 2
    starts = CrashCounts(tmp_path)
    for _ in range(2):
        with pytest.raises(JobRefused) as caught:
            starts.begin("job-1")
        assert str(caught.value) == "The job crashed its worker 2 times and is not tried again"
        assert caught.value.code == "job_refused"
    starts.begin("job-2")
    assert killed(tmp_path) == 1, "refused in another process too"


def test_an_ended_job_is_forgotten(tmp_path: Path) -> None:
    starts = CrashCounts(tmp_path)
    for _ in range(5):
        starts.begin("job-1")
        starts.end("job-1")
    assert list((tmp_path / "starts").iterdir()) == []
    starts.end("never begun")


def test_an_end_forgets_one_job_only(tmp_path: Path) -> None:
    starts = CrashCounts(tmp_path, limit=1)
    starts.begin("job-1")
    starts.begin("job-2")
    starts.end("job-1")
    starts.begin("job-1")
    with pytest.raises(JobRefused):
        starts.begin("job-2")


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_the_limit_counts_starts(tmp_path: Path, limit: int) -> None:
    starts = CrashCounts(tmp_path, limit)
    for _ in range(limit):
        starts.begin("job-1")
    with pytest.raises(JobRefused, match=f" {limit} times"):
        starts.begin("job-1")


def test_old_starts_no_longer_count(tmp_path: Path) -> None:
    starts = CrashCounts(tmp_path, limit=1, keep_days=2)
    starts.begin("job-1")
    [mark] = (tmp_path / "starts").iterdir()
    os.utime(mark, (time.time() - 1.9 * 86400,) * 2)
    with pytest.raises(JobRefused):
        starts.begin("job-1")
    os.utime(mark, (time.time() - 2.1 * 86400,) * 2)
    starts.begin("job-1")
    assert len(list((tmp_path / "starts").iterdir())) == 1


def test_a_folder_that_cannot_be_used_refuses_no_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "starts").write_bytes(b"in the way")
    starts = CrashCounts(tmp_path)
    for _ in range(3):
        starts.begin("job-1")
    starts.end("job-1")
    assert "start of job job-1 not counted" in caplog.text


def test_damaged_marks_and_other_files_are_harmless(tmp_path: Path) -> None:
    starts = CrashCounts(tmp_path)
    starts.begin("job-1")
    [mark] = (tmp_path / "starts").iterdir()
    mark.write_bytes(os.urandom(100))
    (tmp_path / "starts" / "job-1").write_bytes(b"x")
    (tmp_path / "starts" / ".x.part").write_bytes(b"x")
    (tmp_path / "starts" / "folder").mkdir()
    starts.begin("job-2")
    starts.end("job-1")
    assert not mark.exists()


@how(max_examples=60, deadline=None)
@given(job=st.one_of(st.text(), st.sampled_from(ODD_IDS)))
def test_any_job_id_stays_inside(tmp_path_factory: pytest.TempPathFactory, job: str) -> None:
    root = tmp_path_factory.mktemp("volume")
    starts = CrashCounts(root / "spool", limit=1)
    starts.begin(job)
    assert [path.name for path in root.iterdir()] == ["spool"]
    assert len(list((root / "spool" / "starts").iterdir())) == 1
    with pytest.raises(JobRefused):
        starts.begin(job)
    starts.begin(job + "x")
    starts.end(job)
    starts.begin(job)
