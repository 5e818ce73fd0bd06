"""A failing store over real connections: which requests are retried, how often, and for how
long."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.services.faults import Fault, FaultProxy, Request
from tests.storage.stores import (
    BUCKET,
    HASTY,
    MIB,
    QUICK,
    RECORD,
    StopAt,
    fetch,
    make_clip,
    s3_store,
)
from wan_engine.control import Control
from wan_engine.errors import Cancelled, ConfigurationError, StorageFailed
from wan_engine.settings import Settings
from wan_engine.storage import ClipId, RetryLimits, S3Storage

PASSING = [
    Fault("answer", status=500, code="InternalError"),
    Fault("answer", status=502, code="BadGateway"),
    Fault("answer", status=503, code="SlowDown"),
    Fault("answer", status=503, code="ServiceUnavailable"),
    Fault("answer", status=504, code="GatewayTimeout"),
    Fault("answer", status=429, code="TooManyRequests"),
    Fault("answer", status=400, code="RequestTimeout"),
    Fault("reset-body", after_bytes=0),
    Fault("reset-body", after_bytes=1000),
    Fault("reset-answer"),
    Fault("half-answer", after_bytes=0),
    Fault("half-answer", after_bytes=9),
]
IN_A_PART = [
    Fault("answer", status=503, code="SlowDown"),
    Fault("reset-body", after_bytes=MIB),
    Fault("reset-answer"),
    Fault("half-answer", after_bytes=9),
]
LASTING = [
    Fault("answer", status=403, code="AccessDenied"),
    Fault("answer", status=403, code="SignatureDoesNotMatch"),
    Fault("answer", status=403, code="InvalidAccessKeyId"),
    Fault("answer", status=404, code="NoSuchBucket"),
    Fault("answer", status=400, code="EntityTooLarge"),
    Fault("answer", status=409, code="OperationAborted"),
    Fault("answer", status=501, code="NotImplemented"),
    Fault("answer", status=507, code="QuotaExceeded"),
]


def name_of(fault: Fault) -> str:
    return f"{fault.kind} {fault.status if fault.kind == 'answer' else fault.after_bytes}"


def again(fault: Fault, times: int, when: Callable[[Request], bool] | None = None) -> Fault:
    """A fault of the table, for one test to use up."""
    values = {**vars(fault), "times": times}
    return Fault(**{**values, "when": when} if when else values)


def is_clip(request: Request) -> bool:
    return request.method == "PUT" and ".mp4" in request.target


def is_part(number: int) -> Callable[[Request], bool]:
    return lambda request: request.method == "PUT" and f"partNumber={number}" in request.target


def is_post(word: str) -> Callable[[Request], bool]:
    return lambda request: request.method == "POST" and word in request.target


def count(proxy: FaultProxy, when: Callable[[Request], bool]) -> int:
    return len([request for request in proxy.seen if when(request)])


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("fault", PASSING, ids=name_of)
def test_temporary_failures_are_retried(
    proxy: FaultProxy, behind: Settings, clip: Path, fault: Fault
) -> None:
    proxy.inject(again(fault, 3, is_clip))
    url = S3Storage(behind, limits=QUICK).put(clip, "job-1", RECORD, Control())
    assert digest(fetch(url)) == digest(clip.read_bytes())
    assert count(proxy, is_clip) == 4
    assert proxy.injected[fault.kind] == 3


@pytest.mark.parametrize("fault", PASSING, ids=name_of)
def test_there_are_at_most_five_attempts(
    proxy: FaultProxy, behind: Settings, clip: Path, fault: Fault
) -> None:
    proxy.inject(again(fault, 1000))
    started = time.monotonic()
    with pytest.raises(StorageFailed):
        S3Storage(behind, limits=QUICK).put(clip, "job-1", RECORD, Control())
    assert time.monotonic() - started < 5
    assert [request.method for request in proxy.seen] == ["PUT"] * 5
    assert proxy.injected[fault.kind] == 5


@pytest.mark.parametrize("fault", LASTING, ids=lambda fault: f"{fault.status} {fault.code}")
def test_permanent_failures_are_tried_once(
    proxy: FaultProxy, behind: Settings, clip: Path, fault: Fault
) -> None:
    proxy.inject(again(fault, 1000))
    storage = S3Storage(behind, limits=QUICK)
    with pytest.raises(StorageFailed):
        storage.put(clip, "job-1", RECORD, Control())
    assert len(proxy.seen) == proxy.injected["answer"] == 1
    assert storage.finished("job-1", Control()) is None
    with pytest.raises(ConfigurationError):
        storage.check()
    assert len(proxy.seen) == proxy.injected["answer"] == 3


def test_a_refused_connection_is_tried_five_times_with_growing_gaps(
    proxy: FaultProxy, behind: Settings, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.close()
    gaps: list[float] = []
    monkeypatch.setattr("botocore.endpoint.time.sleep", gaps.append)
    with pytest.raises(StorageFailed, match="the object store is not reachable"):
        S3Storage(behind).put(clip, "job-1", RECORD, Control())
    assert len(gaps) == 4
    for number, gap in enumerate(gaps):
        assert 0.25 * 2**number <= gap <= 0.5 * 2**number


def test_the_longest_gap_is_bounded_and_gaps_differ(
    proxy: FaultProxy, behind: Settings, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gaps: list[float] = []
    monkeypatch.setattr("botocore.endpoint.time.sleep", gaps.append)
    proxy.inject(Fault("answer", times=1000))
    with pytest.raises(StorageFailed):
        S3Storage(behind, limits=RetryLimits(attempts=12)).put(clip, "j", RECORD, Control())
    assert len(gaps) == 11 and max(gaps) <= 8
    assert len(set(gaps[6:])) == 5  # without jitter they would all be 8


def test_retries_do_not_end_with_botos_quota(
    proxy: FaultProxy, behind: Settings, clip: Path
) -> None:
    storage = S3Storage(behind, limits=RetryLimits(backoff_seconds=0))
    proxy.inject(Fault("reset-body", times=100))
    for _ in range(20):
        with pytest.raises(StorageFailed):
            storage.put(clip, "job-1", RECORD, Control())
    assert proxy.injected["reset-body"] == len(proxy.seen) == 100


# --- multipart ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", IN_A_PART, ids=name_of)
def test_a_fault_in_the_second_part_repeats_that_part_only(
    proxy: FaultProxy, behind: Settings, s3: Any, tmp_path: Path, fault: Fault
) -> None:
    clip = make_clip(tmp_path, 18 * MIB)
    proxy.inject(again(fault, 2, is_part(2)))
    url = S3Storage(behind, limits=QUICK).put(clip, "job-1", RECORD, Control())
    assert digest(fetch(url)) == digest(clip.read_bytes())
    assert (count(proxy, is_part(1)), count(proxy, is_part(2))) == (1, 3)
    assert proxy.injected[fault.kind] == 2
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=BUCKET)


@pytest.mark.parametrize(("word", "after_bytes"), [("uploads", 20), ("uploadId", 260)])
def test_half_an_answer_to_the_first_and_last_request_of_a_multipart_upload_is_retried(
    proxy: FaultProxy, behind: Settings, tmp_path: Path, word: str, after_bytes: int
) -> None:
    clip = make_clip(tmp_path, 17 * MIB)
    proxy.inject(Fault("half-answer", after_bytes=after_bytes, when=is_post(word)))
    url = S3Storage(behind, limits=QUICK).put(clip, "job-1", RECORD, Control())
    assert digest(fetch(url)) == digest(clip.read_bytes())
    assert proxy.injected["half-answer"] == 1


def test_a_lost_answer_to_the_last_request_is_not_a_failure(
    proxy: FaultProxy, behind: Settings, s3: Any, tmp_path: Path
) -> None:
    clip = make_clip(tmp_path, 17 * MIB)
    proxy.inject(Fault("reset-answer", when=is_post("uploadId")))
    # Amazon then answers with an error; moto completes the upload once more.
    proxy.inject(Fault("answer", 1, is_post("uploadId"), 0, 404, "NoSuchUpload"))
    url = S3Storage(behind, limits=QUICK).put(clip, "job-1", RECORD, Control())
    assert digest(fetch(url)) == digest(clip.read_bytes())
    assert count(proxy, is_post("uploadId")) == 2
    assert len(s3.list_objects_v2(Bucket=BUCKET)["Contents"]) == 2


def test_an_upload_that_the_store_lost_is_a_failure(
    proxy: FaultProxy, behind: Settings, tmp_path: Path
) -> None:
    fault = Fault("answer", status=404, code="NoSuchUpload", when=is_post("uploadId"))
    proxy.inject(fault)
    with pytest.raises(StorageFailed):
        S3Storage(behind, limits=QUICK).put(
            make_clip(tmp_path, 17 * MIB), "job-1", RECORD, Control()
        )
    assert proxy.injected["answer"] == 1


def test_a_failed_multipart_upload_leaves_no_parts(
    proxy: FaultProxy, behind: Settings, s3: Any, tmp_path: Path
) -> None:
    proxy.inject(Fault("answer", times=1000, when=is_part(2)))
    with pytest.raises(StorageFailed):
        S3Storage(behind, limits=QUICK).put(
            make_clip(tmp_path, 17 * MIB), "job-1", RECORD, Control()
        )
    assert proxy.injected["answer"] == 5
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=BUCKET)


def test_an_answer_without_its_tag_is_a_failure_in_the_end(
    proxy: FaultProxy, behind: Settings, tmp_path: Path
) -> None:
    proxy.inject(Fault("half-answer", times=1000, after_bytes=17, when=is_part(1)))
    with pytest.raises(StorageFailed, match="the connection to the object store broke"):
        S3Storage(behind, limits=QUICK).put(
            make_clip(tmp_path, 17 * MIB), "job-1", RECORD, Control()
        )
    assert proxy.injected["half-answer"] == 5


# --- the record -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["half-answer", "stall-answer"])
def test_a_truncated_record_is_read_again(
    proxy: FaultProxy, behind: Settings, clip: Path, kind: str
) -> None:
    storage = S3Storage(behind, limits=HASTY)
    storage.put(clip, "job-1", RECORD, Control())

    def is_record(request: Request) -> bool:
        return request.method == "GET" and request.target.endswith("jobs/job-1.json")

    proxy.inject(Fault(kind, times=2, after_bytes=-5, when=is_record))
    found = storage.finished("job-1", Control())
    assert found is not None and found[1] == RECORD
    assert proxy.injected[kind] == 2


def test_a_record_that_cannot_be_stored_fails_store_and_not_put(
    proxy: FaultProxy, behind: Settings, clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = S3Storage(behind, limits=QUICK)
    proxy.inject(Fault("answer", times=1000, when=lambda request: "jobs/" in request.target))
    assert fetch(storage.put(clip, "job-1", RECORD, Control())) == clip.read_bytes()
    assert "no record of job job-1" in caplog.text
    with pytest.raises(StorageFailed, match="is not available"):
        storage.store(clip, ClipId.new("job-1"), RECORD, Control())


def test_storing_a_clip_twice_is_the_same_as_once(
    bucket_settings: dict[str, Any], s3: Any, clip: Path
) -> None:
    store = s3_store(s3, bucket_settings)
    name = ClipId.new("job-1")
    assert isinstance(store.storage, S3Storage)
    for _ in range(2):
        store.storage.store(clip, name, RECORD, Control())
        assert len(store.clips()) == len(store.records()) == 1
    with pytest.raises(Cancelled):
        store.storage.store(clip, name, RECORD, StopAt(3))
    assert len(store.clips()) == 1
