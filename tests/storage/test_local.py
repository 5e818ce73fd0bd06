"""Behaviour of folders only."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.storage.stores import (
    RECORD,
    fetch,
    local_store,
)
from wan_engine.control import Control
from wan_engine.errors import ConfigurationError, StorageFailed
from wan_engine.storage import LocalStorage


def test_names_of_local_clips(tmp_path: Path, clip: Path) -> None:
    store = local_store(tmp_path / "out")
    url = store.storage.put(clip, "job-1", RECORD, Control())
    assert url.startswith("file:///")
    [name] = store.clips()
    day, clock, job, number, tail = name.split("-")
    assert (len(day), len(clock), f"{job}-{number}", len(tail)) == (8, 6, "job-1", 12)
    assert store.records() == [".jobs/job-1.json"]
    assert json.loads((tmp_path / "out/.jobs/job-1.json").read_bytes()) == {**RECORD, "key": name}


def test_local_urls_are_absolute(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = LocalStorage(Path("out puts")).put(clip, "j", {}, Control())
    assert Path(unquote(urlsplit(url).path)).parent == tmp_path / "out puts"


def test_a_local_record_cannot_point_outside(tmp_path: Path, clip: Path) -> None:
    store = local_store(tmp_path / "out")
    store.storage.put(clip, "job-1", RECORD, Control())
    for key in ("../clip.mp4", str(clip), "..", "."):
        store.write(".jobs/job-1.json", json.dumps({"key": key}).encode())
        assert store.storage.finished("job-1", Control()) is None


def test_a_full_disk_is_reported(
    tmp_path: Path,
    clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def replace(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "replace", replace)
    store = local_store(tmp_path / "out")
    with pytest.raises(StorageFailed) as caught:
        store.storage.put(clip, "job-1", RECORD, Control())
    reason = "no space left on the device"
    assert str(caught.value) == f"The finished clip could not be stored: {reason}"
    assert store.contents() == {}
    assert str(tmp_path) in caplog.text


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path, clip: Path) -> None:
    storage = LocalStorage(clip / "out")
    with pytest.raises(StorageFailed) as caught:
        storage.put(clip, "job-1", RECORD, Control())
    assert str(caught.value) == "The finished clip could not be stored"
    with pytest.raises(ConfigurationError, match="set WAN_OUTPUT_DIR to a folder"):
        storage.check()
    assert storage.finished("job-1", Control()) is None


def test_a_clip_without_a_record_is_still_a_clip(
    tmp_path: Path, clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".jobs").write_text("in the way")
    storage = LocalStorage(tmp_path / "out")
    assert fetch(storage.put(clip, "job-1", RECORD, Control())) == clip.read_bytes()
    assert storage.finished("job-1", Control()) is None
    assert "no record of job job-1" in caplog.text


def test_forgetting_a_job_removes_its_files_and_no_others(tmp_path: Path, clip: Path) -> None:
    store = local_store(tmp_path / "out")
    for job_id in ("job-1", "job-2"):
        store.storage.put(clip, job_id, RECORD, Control())
    storage = LocalStorage(tmp_path / "out")
    storage.forget("job-1")
    storage.forget("job-1")
    storage.forget("no such job")
    assert store.records() == [".jobs/job-2.json"] and len(store.clips()) == 1
    store.write(".jobs/job-2.json", json.dumps({"key": "../../clip.mp4"}).encode())
    storage.forget("job-2")
    assert clip.exists() and store.records() == [] and len(store.clips()) == 1
