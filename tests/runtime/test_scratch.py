"""Folders of jobs: they are made if there is room, and removed after the job, even if its process
was killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from wan_engine import Settings
from wan_engine.errors import ConfigurationError, DiskFull, InvalidMedia
from wan_engine.runtime import scratch

MakeSettings = Callable[..., Settings]


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the free space that the system reports."""

    def leave(free_bytes: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12, free_bytes))

    return leave


def left(settings: Settings) -> list[Path]:
    assert settings.scratch_dir is not None
    return list(settings.scratch_dir.iterdir())


def test_a_folder_is_removed_after_its_job(make_settings: MakeSettings) -> None:
    settings = make_settings()
    with scratch.job_folder(settings) as folder:
        (folder / "clip.mp4").write_bytes(b"x")
        assert left(settings) == [folder]
    assert left(settings) == []


def test_a_folder_is_removed_after_a_failed_job(make_settings: MakeSettings) -> None:
    settings = make_settings()
    with pytest.raises(KeyboardInterrupt), scratch.job_folder(settings):
        raise KeyboardInterrupt
    assert left(settings) == []


def test_no_job_starts_without_room(
    make_settings: MakeSettings, disk: Callable[[int], None]
) -> None:
    disk(1_900_000_000)
    with pytest.raises(DiskFull, match="disk has no room"), scratch.job_folder(make_settings()):
        pytest.fail("begun")
    with scratch.job_folder(make_settings(scratch_min_gb=1.8)):
        pass


@pytest.mark.parametrize("name", ["absent", "file"])
def test_a_folder_that_cannot_be_made_is_not_the_callers_fault(
    make_settings: MakeSettings, tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(DiskFull) as caught,
        scratch.job_folder(make_settings(scratch_dir=tmp_path / name)),
    ):
        pytest.fail("begun")
    assert str(tmp_path) not in str(caught.value)


def test_a_failure_on_a_full_disk_is_not_blamed_on_the_sound(
    make_settings: MakeSettings, disk: Callable[[int], None]
) -> None:
    with pytest.raises(DiskFull), scratch.job_folder(make_settings()):
        disk(0)
        raise InvalidMedia("audio", "the file is damaged")
    assert left(make_settings()) == []


def test_a_failure_with_room_left_keeps_its_own_reason(make_settings: MakeSettings) -> None:
    with pytest.raises(InvalidMedia), scratch.job_folder(make_settings()):
        raise InvalidMedia("audio", "the file is damaged")


HOLDER = """
import sys
from pathlib import Path
from wan_engine.runtime import scratch
from wan_engine import Settings
with scratch.job_folder(Settings(scratch_dir=Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[Any]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        env=environment,
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    return process


def test_only_the_folders_of_killed_processes_are_removed(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings()
    assert settings.scratch_dir is not None
    (settings.scratch_dir / "wan-models").mkdir()
    killed, working = holder(settings.scratch_dir), holder(settings.scratch_dir)
    try:
        killed.kill()
        killed.communicate()
        assert scratch.clear_abandoned(settings) == 0  # too young to be sure
        monkeypatch.setattr(scratch, "_NEW_SECONDS", 0)
        assert scratch.clear_abandoned(settings) == 1
        assert len(left(settings)) == 2
    finally:
        working.communicate(b"", timeout=10)
    assert [path.name for path in left(settings)] == ["wan-models"]


def test_a_link_is_not_followed(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, precious = make_settings(), tmp_path / "precious"
    precious.mkdir()
    assert settings.scratch_dir is not None
    (settings.scratch_dir / "wan-engine-job-x").symlink_to(precious)
    monkeypatch.setattr(scratch, "_NEW_SECONDS", 0)
    time.sleep(0.01)
    assert scratch.clear_abandoned(settings) == 0 and precious.is_dir()


def test_the_check_says_what_to_do(
    make_settings: MakeSettings, disk: Callable[[int], None], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="Set WAN_SCRATCH_DIR"):
        scratch.check(make_settings(scratch_dir=tmp_path / "absent"))
    assert "GB free" in scratch.check(make_settings())
    disk(10**9)
    with pytest.raises(ConfigurationError, match=r"below 2 GB\. Make room"):
        scratch.check(make_settings())


# --- file systems without locks -------------------------------------------------------------------

NO_FLOCK = """
#include <errno.h>
int flock(int descriptor, int how) { errno = NUMBER; return -1; }
"""


@pytest.fixture(params=["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def no_locks(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """An environment in which the system call `flock` fails, as on some network file systems."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = tmp_path / "flock.c"
    source.write_text(NO_FLOCK.replace("NUMBER", request.param))
    library = tmp_path / "flock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}


UNLOCKED = """
import os, sys
from pathlib import Path
from wan_engine.runtime import scratch
from wan_engine import Settings
settings = Settings(scratch_dir=Path(sys.argv[1]))
scratch._NEW_SECONDS = -1
found = scratch.check(settings)
with scratch.job_folder(settings) as folder:
    (folder / "clip.mp4").write_bytes(b"x")
    print(type(found).__name__, scratch.clear_abandoned(settings), folder.exists())
    for path in (folder, *folder.iterdir()):
        os.utime(path, (1, 1))
    os.utime(folder, (1, 1))
    print(scratch.clear_abandoned(settings), folder.exists())
print(list(Path(sys.argv[1]).iterdir()))
"""


def test_without_locks_jobs_run_and_recent_files_are_kept(
    no_locks: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "scratch").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", UNLOCKED, str(tmp_path / "scratch")],
        cwd=Path(__file__).parents[2],
        env=no_locks,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["Warned 0 True", "1 False", "[]"]


def test_a_folder_of_a_process_without_locks_is_not_taken_by_one_with_locks(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, no_locks: dict[str, str]
) -> None:
    settings = make_settings()
    assert settings.scratch_dir is not None
    working = holder(settings.scratch_dir, no_locks)
    try:
        monkeypatch.setattr(scratch, "_NEW_SECONDS", 0)
        assert scratch.clear_abandoned(settings) == 0
        assert len(left(settings)) == 1
    finally:
        working.communicate(b"", timeout=10)


def test_on_a_network_volume_a_lock_of_this_machine_proves_nothing(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker on another machine may hold a folder with a lock that is invisible here."""
    settings = make_settings()
    assert settings.scratch_dir is not None
    killed = holder(settings.scratch_dir)
    killed.kill()
    killed.communicate()
    monkeypatch.setattr(scratch, "_NEW_SECONDS", 0)
    monkeypatch.setattr("wan_engine.runtime.paths.over_a_network", lambda _: True)
    assert scratch.clear_abandoned(settings) == 0
    for folder in left(settings):
        os.utime(folder, (1, 1))
    assert scratch.clear_abandoned(settings) == 1
