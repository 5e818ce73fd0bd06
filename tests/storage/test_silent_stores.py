"""A store that stops answering: retries, the limits of time, and the end of a job meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from benchmarks.services.faults import Fault, FaultProxy
from tests.storage.stores import (
    BUCKET,
    HASTY,
    MIB,
    QUICK,
    RECORD,
    SLOW,
    eventually,
    fetch,
    make_clip,
    working,
)
from tests.storage.test_retries import again, count, digest, is_clip, is_part, name_of
from wan_engine.control import Control
from wan_engine.errors import Cancelled, ConfigurationError, DeadlineExceeded, StorageFailed
from wan_engine.settings import Settings
from wan_engine.storage import ClipId, S3Storage


def test_a_stall_is_retried(proxy: FaultProxy, behind: Settings, clip: Path) -> None:
    proxy.inject(Fault("stall", when=is_clip))
    limits = replace(QUICK, read_seconds=1)
    url = S3Storage(behind, limits=limits).put(clip, "job-1", RECORD, Control())
    assert digest(fetch(url)) == digest(clip.read_bytes())
    assert count(proxy, is_clip) == 2


def test_a_stall_in_the_second_part_is_retried(
    proxy: FaultProxy, behind: Settings, tmp_path: Path
) -> None:
    clip = make_clip(tmp_path, 18 * MIB)
    proxy.inject(Fault("stall-body", after_bytes=MIB, when=is_part(2)))
    limits = replace(QUICK, read_seconds=1)
    url = S3Storage(behind, limits=limits).put(clip, "job-1", RECORD, Control())
    assert digest(fetch(url)) == digest(clip.read_bytes())
    assert proxy.injected["stall-body"] == 1 and count(proxy, is_part(2)) >= 2


@pytest.mark.parametrize(
    "fault", [Fault("stall"), Fault("stall-body", after_bytes=MIB)], ids=name_of
)
def test_stalls_are_bounded_by_the_number_of_attempts(
    proxy: FaultProxy, behind: Settings, tmp_path: Path, fault: Fault
) -> None:
    proxy.inject(again(fault, 1000))
    clip = make_clip(tmp_path, 12 * MIB)  # more than the sockets' buffers hold
    started = time.monotonic()
    with pytest.raises(StorageFailed):
        S3Storage(behind, limits=HASTY).put(clip, "job-1", RECORD, Control())
    took = time.monotonic() - started
    assert proxy.injected[fault.kind] == 5
    assert 5 * 0.4 <= took < 5 * 0.4 + 4


def test_the_total_time_is_bounded(proxy: FaultProxy, behind: Settings, clip: Path) -> None:
    proxy.inject(Fault("stall", times=1000))
    limits = replace(SLOW, put_seconds=0.4, find_seconds=0.3)
    storage = S3Storage(behind, limits=limits)
    started = time.monotonic()
    with pytest.raises(StorageFailed, match="the object store did not answer in time"):
        storage.put(clip, "job-1", RECORD, Control())
    assert storage.finished("job-1", Control()) is None
    with pytest.raises(ConfigurationError):
        storage.check()
    assert time.monotonic() - started < 0.4 + 0.5 + 2 * 0.3 + 1
    assert proxy.injected["stall"] == 3


CALLS: dict[str, Callable[[S3Storage, Path, Control], object]] = {
    "put": lambda storage, clip, control: storage.put(clip, "job-1", RECORD, control),
    "store": lambda storage, clip, control: storage.store(
        clip, ClipId.new("job-1"), RECORD, control
    ),
    "finished": lambda storage, clip, control: storage.finished("job-1", control),
}


class Ending(Control):
    """Cancelled, or past its deadline, in a moment. `seconds_late` says how late it was noticed."""

    def __init__(self, end: str = "cancel") -> None:
        super().__init__(deadline_seconds=1e9)
        self._end = end
        self.ended_at = 0.0

    def soon(self) -> None:
        Timer(0.1, self.now).start()

    def now(self) -> None:
        self.ended_at = time.monotonic()
        if self._end == "cancel":
            self.cancel()
        else:
            self._limit_seconds = 0.0

    @property
    def seconds_late(self) -> float:
        return time.monotonic() - self.ended_at


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("end", ["cancel", "deadline"])
def test_a_job_ends_at_once_while_its_store_is_silent(
    proxy: FaultProxy, behind: Settings, clip: Path, call: str, end: str
) -> None:
    control = Ending(end)
    proxy.inject(Fault("stall", times=1000, then=control.soon))
    with pytest.raises(Cancelled if end == "cancel" else DeadlineExceeded):
        CALLS[call](S3Storage(behind, limits=SLOW), clip, control)
    assert control.seconds_late < 3
    assert proxy.injected["stall"] == 1


@pytest.mark.parametrize("target", ["?uploads", "partNumber=1", "partNumber=2", "uploadId", "jobs"])
def test_a_cancel_in_any_request_of_an_upload_ends_it(
    proxy: FaultProxy, behind: Settings, s3: Any, tmp_path: Path, target: str
) -> None:
    control = Ending()
    fault = Fault("stall", when=lambda request: target in request.target, then=control.soon)
    proxy.inject(fault)
    with pytest.raises(Cancelled):
        S3Storage(behind, limits=replace(QUICK, read_seconds=0.5)).put(
            make_clip(tmp_path, 17 * MIB), "job-1", RECORD, control
        )
    assert control.seconds_late < 3
    assert proxy.injected["stall"] == 1

    def empty() -> bool:
        uploads = s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        return not uploads and "Contents" not in s3.list_objects_v2(Bucket=BUCKET)

    assert eventually(lambda: empty() and not working(), 8)


def test_a_cancelled_job_sends_nothing_again(
    proxy: FaultProxy, behind: Settings, clip: Path
) -> None:
    control = Ending()
    proxy.inject(Fault("stall", times=1000, when=is_clip, then=control.soon))
    with pytest.raises(Cancelled):
        S3Storage(behind, limits=HASTY).put(clip, "job-1", RECORD, control)
    assert eventually(lambda: not working())
    assert [request.method for request in proxy.seen] == ["PUT", "DELETE"]
    assert proxy.injected["stall"] == 1


def test_a_clip_that_was_given_up_is_not_sent_again(
    proxy: FaultProxy, behind: Settings, clip: Path
) -> None:
    proxy.inject(Fault("stall", times=1000, when=is_clip))
    storage = S3Storage(behind, limits=replace(HASTY, read_seconds=0.5, put_seconds=0.3))
    with pytest.raises(StorageFailed, match="did not answer in time"):
        storage.put(clip, "job-1", RECORD, Control())
    assert eventually(lambda: not working())
    assert [request.method for request in proxy.seen] == ["PUT", "DELETE"]


def test_a_clip_that_arrives_too_late_is_removed(
    proxy: FaultProxy, behind: Settings, s3: Any, clip: Path
) -> None:
    proxy.inject(Fault("stall-answer", after_bytes=30, when=is_clip))
    storage = S3Storage(behind, limits=replace(QUICK, put_seconds=0.5, read_seconds=1))
    with pytest.raises(StorageFailed, match="did not answer in time"):
        storage.put(clip, "job-1", RECORD, Control())
    assert "Contents" in s3.list_objects_v2(Bucket=BUCKET)
    assert eventually(lambda: "Contents" not in s3.list_objects_v2(Bucket=BUCKET))
    assert proxy.injected["stall-answer"] == 1
