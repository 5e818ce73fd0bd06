"""Which worker renders a job that was handed over twice, decided by each store, and what
follows."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from benchmarks.services.faults import Fault, FaultProxy, Request
from tests.storage.stores import (
    BUCKET,
    ODD_IDS,
    ONCE,
    QUICK,
    RECORD,
    Store,
    fetch,
    s3_store,
    settings,
)
from wan_engine.control import Control
from wan_engine.errors import Cancelled, InvalidRequest
from wan_engine.settings import Settings
from wan_engine.storage import LocalStorage, S3Storage, Storage
from wan_engine.storage.claims import FIELD, duplicate_of, once, taken


def test_the_first_claim_wins_and_keeps_the_job(store: Store) -> None:
    claim = store.storage.claim
    assert [claim("job", who, Control()) for who in ("a", "b", "a", "c")] == ["a"] * 4
    assert claim("another", "b", Control()) == "b"


def test_the_claim_lies_beside_the_record_and_is_not_a_clip(store: Store, clip: Path) -> None:
    assert store.storage.claim("job-1", "a", Control()) == "a"
    assert store.storage.finished("job-1", Control()) is None
    store.storage.put(clip, "job-1", RECORD, Control())
    (record,) = store.records()
    assert record.replace(".json", ".claim") in store.contents()
    assert store.storage.claim("job-1", "b", Control()) == "a"


def test_odd_ids_are_claimed_apart(store: Store) -> None:
    ids = [one for one in ODD_IDS if one.isprintable()]
    assert [store.storage.claim(one, one, Control()) for one in ids] == ids


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"holder": 5}'])
def test_a_damaged_claim_belongs_to_nobody(store: Store, damage: bytes) -> None:
    store.storage.claim("job-1", "a", Control())
    (name,) = store.contents()
    store.write(name, damage)
    assert store.storage.claim("job-1", "b", Control()) is None


def test_a_cancelled_job_claims_nothing(store: Store) -> None:
    control = Control()
    control.cancel()
    with pytest.raises(Cancelled):
        store.storage.claim("job-1", "a", control)
    assert store.contents() == {}


def test_of_many_concurrent_claims_one_wins(tmp_path: Path) -> None:
    found: list[str | None] = []
    start = threading.Barrier(12)

    def claim(who: str) -> None:
        start.wait()
        found.append(LocalStorage(tmp_path).claim("job", who, Control()))

    threads = [threading.Thread(target=claim, args=(str(number),)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12 and len(set(found)) == 1 and found[0] is not None
    assert [path.name for path in (tmp_path / ".jobs").iterdir()] == ["job.claim"]


def test_in_a_folder_that_cannot_be_written_nothing_is_claimed(tmp_path: Path) -> None:
    (tmp_path / ".jobs").write_bytes(b"in the way")
    assert LocalStorage(tmp_path).claim("job", "a", Control()) is None


def test_a_forgotten_job_has_no_claim(tmp_path: Path, clip: Path) -> None:
    storage = LocalStorage(tmp_path / "clips")
    storage.claim("job", "a", Control())
    storage.put(clip, "job", RECORD, Control())
    storage.forget("job")
    assert not [path for path in (tmp_path / "clips").rglob("*") if path.is_file()]


# --- buckets -------------------------------------------------------------------------------------


def puts(request: Request) -> bool:
    return request.method == "PUT"


def gets(request: Request) -> bool:
    return request.method == "GET"


def test_a_claim_whose_answer_is_lost_still_belongs_to_its_worker(
    behind: Settings, proxy: FaultProxy
) -> None:
    proxy.inject(Fault("reset-answer", when=puts))
    assert S3Storage(behind, limits=QUICK).claim("job", "a", Control()) == "a"
    assert proxy.injected == {"reset-answer": 1}


def test_conflicting_writes_are_tried_again(behind: Settings, proxy: FaultProxy) -> None:
    fault = Fault("answer", when=puts, status=409, code="ConditionalRequestConflict")
    proxy.inject(fault)
    assert S3Storage(behind, limits=QUICK).claim("job", "a", Control()) == "a"


def test_a_claim_made_by_another_after_the_check_wins(
    s3: Any, behind: Settings, proxy: FaultProxy, bucket_settings: dict[str, Any]
) -> None:
    quicker = S3Storage(settings(**bucket_settings))

    def claim() -> None:
        quicker.claim("job", "b", Control())

    fault = Fault("answer", when=gets, status=404, code="NoSuchKey", then=claim)
    proxy.inject(fault)
    assert S3Storage(behind, limits=QUICK).claim("job", "a", Control()) == "b"
    assert s3_store(s3, bucket_settings).storage.claim("job", "a", Control()) == "b"


def test_a_key_without_the_right_to_list_can_claim(behind: Settings, proxy: FaultProxy) -> None:
    """S3 then answers 403 instead of 404."""
    proxy.inject(Fault("answer", when=gets, status=403, code="AccessDenied"))
    storage = S3Storage(behind, limits=QUICK)
    assert storage.claim("job", "a", Control()) == "a"
    assert storage.claim("job", "b", Control()) == "a"


@pytest.mark.parametrize("refuses", [True, False])
def test_claims_work_in_a_store_without_conditional_writes(
    behind: Settings, proxy: FaultProxy, refuses: bool
) -> None:
    if refuses:
        proxy.inject(Fault("answer", when=puts, status=501, code="NotImplemented"))
    proxy.unknown = ("if-none-match",)
    storage = S3Storage(behind, limits=QUICK)
    assert [storage.claim("job", who, Control()) for who in ("a", "b", "a")] == ["a"] * 3
    assert proxy.injected == ({"answer": 1} if refuses else {})


def test_an_unreachable_store_claims_nothing(
    bucket_settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    values = {**bucket_settings, "bucket_endpoint_url": "http://127.0.0.1:1"}
    assert S3Storage(settings(**values), limits=ONCE).claim("job", "a", Control()) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "if it was sent twice it is rendered twice" in caplog.text


def test_claims_expire_with_the_clips(s3: Any, bucket_settings: dict[str, Any]) -> None:
    """The documented rule for the bucket covers WAN_S3_PREFIX."""
    storage = S3Storage(settings(**bucket_settings))
    storage.claim("job", "a", Control())
    (item,) = s3.list_objects_v2(Bucket=BUCKET)["Contents"]
    assert item["Key"] == "wan clips/v1/jobs/job.claim" and item["Size"] < 1024


# --- results -------------------------------------------------------------------------------------


class Renders:
    """An engine that stores `clip`. `ids` are the jobs that it rendered."""

    def __init__(self, clip: Path) -> None:
        self.ids: list[str] = []
        self._clip = clip

    def __call__(self, storage: Storage, control: Control) -> dict[str, Any]:
        if (done := storage.finished(control.job_id, control)) is not None:
            return {"video_url": done[0]}
        self.ids.append(control.job_id)
        return {"video_url": storage.put(self._clip, control.job_id, RECORD, control)}

    def of(self, store: Store, job_id: str, claim: str = "render/0.0") -> dict[str, Any]:
        control = Control(job_id)
        return once(claim, store.storage, control, lambda storage: self(storage, control))


def test_the_second_copy_names_the_first(store: Store, clip: Path) -> None:
    told: list[dict[str, Any]] = []

    class Meanwhile(Renders):
        def __call__(self, storage: Storage, control: Control) -> dict[str, Any]:
            told.append(Renders(clip).of(store, "second"))
            return super().__call__(storage, control)

    renders = Meanwhile(clip)
    assert fetch(renders.of(store, "first")["video_url"]) == clip.read_bytes()
    assert told == [{"duplicate_of": "first"}] and duplicate_of(told[0]) == "first"


def test_a_copy_that_arrives_after_the_clip_gets_the_clip(store: Store, clip: Path) -> None:
    renders = Renders(clip)
    for job_id in ("first", "second", "first"):
        assert fetch(renders.of(store, job_id)["video_url"]) == clip.read_bytes()
    assert renders.ids == ["first"]


def test_a_claimed_job_whose_worker_dies_continues_on_another(store: Store, clip: Path) -> None:
    class Killed(Renders):
        def __call__(self, storage: Storage, control: Control) -> dict[str, Any]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Killed(clip).of(store, "first")
    renders = Renders(clip)
    assert renders.of(store, "second") == {"duplicate_of": "first"}
    assert "video_url" in renders.of(store, "first")


def test_renders_with_two_names_are_two(store: Store, clip: Path) -> None:
    renders = Renders(clip)
    renders.of(store, "first", "render/0.0")
    renders.of(store, "second", "render/0.1")
    assert renders.ids == ["first", "second"]


def test_a_name_does_not_find_a_job_by_its_id(store: Store, clip: Path) -> None:
    """A name comes from outside. It must not lead to the clip of a job without a name."""
    store.storage.put(clip, "job-1", RECORD, Control())
    renders = Renders(clip)
    renders.of(store, "second", "job-1")
    assert renders.ids == ["second"]


def test_the_name_is_removed_from_the_input() -> None:
    assert taken({"prompt": "x", FIELD: "a/0.0"}) == ("a/0.0", {"prompt": "x"})
    for other in ({"prompt": "x"}, None, [FIELD], "x"):
        assert taken(other) == (None, other)


@pytest.mark.parametrize("name", ["", "a b", "é", "a\n", "x" * 201, 5, None, ["a"], {}])
def test_a_wrong_name_is_refused(name: object) -> None:
    with pytest.raises(InvalidRequest, match=f'field "{FIELD}" must be 1 to 200 characters'):
        taken({FIELD: name})


@pytest.mark.parametrize(
    "output", [None, "a", {}, {"duplicate_of": 5}, {"duplicate_of": ""}, {"duplicate_of": "../x"}]
)
def test_other_outputs_name_no_job(output: object) -> None:
    assert duplicate_of(output) is None
