"""The contract of all stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storage.stores import (
    MIB,
    ODD_IDS,
    PREFIX,
    RECORD,
    StopAt,
    Store,
    fetch,
    make_clip,
)
from wan_engine.control import Control
from wan_engine.errors import Cancelled, DeadlineExceeded, StorageFailed


def test_the_url_gives_the_clip(store: Store, clip: Path) -> None:
    url = store.storage.put(clip, "job-1", RECORD, Control())
    assert fetch(url) == clip.read_bytes()
    assert clip.exists()


def test_a_finished_job_is_found_again(store: Store, clip: Path) -> None:
    assert store.storage.finished("job-1", Control()) is None
    store.storage.put(clip, "job-1", RECORD, Control())
    found = store.storage.finished("job-1", Control())
    assert found is not None
    url, record = found
    assert fetch(url) == clip.read_bytes()
    assert record == RECORD
    assert store.storage.finished("job-2", Control()) is None
    assert store.storage.finished("job", Control()) is None


def test_a_second_put_of_a_job_wins(store: Store, clip: Path, tmp_path: Path) -> None:
    store.storage.put(clip, "job-1", {"seed": 1}, Control())
    clip = make_clip(tmp_path)
    store.storage.put(clip, "job-1", {"seed": 2}, Control())
    found = store.storage.finished("job-1", Control())
    assert found is not None
    assert (fetch(found[0]), found[1]) == (clip.read_bytes(), {"seed": 2})


def test_a_vanished_clip_is_not_a_finished_job(store: Store, clip: Path) -> None:
    store.storage.put(clip, "job-1", RECORD, Control())
    [name] = store.clips()
    store.write(name, None)
    assert store.storage.finished("job-1", Control()) is None


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"key": 5}',
        b'{"key": ""}',
        b"null",
        b'"a"',
        b'{"key": "\\ud800"}',
        b'{"key": "a\\u0000"}',
        b'{"key": "%s"}' % (b"x" * 5000),
    ],
)
def test_a_damaged_record_is_not_a_finished_job(store: Store, clip: Path, damage: bytes) -> None:
    store.storage.put(clip, "job-1", RECORD, Control())
    [name] = store.records()
    store.write(name, damage)
    assert store.storage.finished("job-1", Control()) is None


@pytest.mark.parametrize("size", [0, 3000, 2 * MIB], ids=["empty", "small", "large"])
@pytest.mark.parametrize("checkpoint", [1, 2, 3])
def test_a_cancel_leaves_nothing(store: Store, tmp_path: Path, size: int, checkpoint: int) -> None:
    control = StopAt(checkpoint)
    try:
        store.storage.put(make_clip(tmp_path, size), "job-1", RECORD, control)
    except Cancelled:
        assert store.contents() == {}
        assert store.storage.finished("job-1", Control()) is None
    else:
        assert not control.cancelled
        assert size <= 3000, "a long transfer asks often"


def test_the_deadline_ends_a_put(store: Store, clip: Path) -> None:
    with pytest.raises(DeadlineExceeded):
        store.storage.put(clip, "job-1", RECORD, Control(deadline_seconds=-1))
    assert store.contents() == {}


def test_a_missing_source_is_a_storage_failure(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StorageFailed) as caught:
        store.storage.put(tmp_path / "absent.mp4", "job-1", RECORD, Control())
    assert str(caught.value) == "The finished clip could not be stored"
    assert store.contents() == {}


def test_odd_job_ids_stay_inside_and_apart(store: Store, clip: Path) -> None:
    for number, job in enumerate(ODD_IDS):
        store.storage.put(clip, job, {"number": number}, Control())
    for number, job in enumerate(ODD_IDS):
        found = store.storage.finished(job, Control())
        assert found is not None
        assert found[1] == {"number": number}
    names = [name.removeprefix(f"{PREFIX}/") for name in store.contents()]
    assert len(names) == 2 * len(ODD_IDS)
    for name in names:
        assert name.startswith((".jobs/", "jobs/", "20"))
        assert ".." not in name
        assert all(len(part) <= 100 and part.isascii() for part in name.split("/"))


def test_check_says_where_clips_go(store: Store) -> None:
    line = store.storage.check()
    assert line.startswith("clips go to the ")
    assert "\n" not in line
    assert store.contents() == {}


def test_a_cancelled_job_sends_no_request(store: Store, clip: Path) -> None:
    store.storage.put(clip, "job-1", RECORD, Control())
    control = Control()
    control.cancel()
    with pytest.raises(Cancelled):
        store.storage.finished("job-1", control)


def test_a_flush_with_nothing_kept_changes_nothing(store: Store, clip: Path) -> None:
    store.storage.put(clip, "job-1", RECORD, Control())
    before = store.contents()
    store.storage.flush()
    assert store.contents() == before
