"""A finished clip survives an outage of its bucket, the end of its worker, and other workers."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from benchmarks.services.faults import Fault, FaultProxy, Request
from tests.storage.stores import (
    BUCKET,
    MIB,
    ODD_IDS,
    QUICK,
    RECORD,
    Store,
    eventually,
    fetch,
    make_clip,
    s3_store,
    working,
)
from wan_engine.control import Control
from wan_engine.errors import Cancelled, ConfigurationError, DeadlineExceeded, StorageFailed
from wan_engine.settings import Settings
from wan_engine.storage import LocalStorage, S3Storage, SpooledStorage, open_storage

KEPT = "it is kept and will be uploaded later"
AWAY = "The finished clip could not be stored: the object store is not available"
OUTAGE = Fault("answer", status=503, code="ServiceUnavailable")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "volume" / "spool"


@pytest.fixture
def storage(behind: Settings, folder: Path) -> SpooledStorage:
    return worker(behind, folder)


@pytest.fixture
def bucket(s3: Any, bucket_settings: dict[str, Any]) -> Store:
    """The bucket, without the proxy."""
    return s3_store(s3, bucket_settings)


def worker(behind: Settings, folder: Path, keep_days: float = 7) -> SpooledStorage:
    return SpooledStorage(S3Storage(behind, limits=QUICK), folder, keep_days)


def outage(proxy: FaultProxy, fault: Fault = OUTAGE) -> None:
    proxy.inject(Fault(fault.kind, times=10_000, status=fault.status, code=fault.code))


def spool(
    proxy: FaultProxy, storage: SpooledStorage, clip: Path, *jobs: str, record: Any = RECORD
) -> None:
    """Put each job's clip while the store is down, and bring the store back."""
    outage(proxy)
    for job in jobs:
        with pytest.raises(StorageFailed, match=KEPT):
            storage.put(clip, job, record, Control())
    proxy.mend()
    proxy.seen.clear()
    proxy.injected.clear()


def files(folder: Path, suffix: str = "") -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.endswith(suffix))


def aged(folder: Path, job: str, age: timedelta) -> None:
    """Make a job's files look as if they were spooled earlier."""
    stamp = f"{datetime.now(UTC) - age:%Y%m%d-%H%M%S}"
    for path in folder.glob(f"{job}.*"):
        _, _, token, suffix = path.name.split(".")
        moved = path.rename(folder / f"{job}.{stamp}.{token}.{suffix}")
        os.utime(moved, (time.time() - age.total_seconds(),) * 2)


# --- storing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (OUTAGE, "the object store is not available"),
        (Fault("reset-body"), "the connection to the object store broke"),
        (Fault("answer", status=403, code="AccessDenied"), "the object store refused it"),
        (Fault("answer", status=404, code="NoSuchBucket"), "the object store refused it"),
    ],
)
def test_a_clip_that_the_store_does_not_accept_is_kept(
    proxy: FaultProxy,
    storage: SpooledStorage,
    folder: Path,
    clip: Path,
    caplog: pytest.LogCaptureFixture,
    fault: Fault,
    sentence: str,
) -> None:
    outage(proxy, fault)
    with pytest.raises(StorageFailed) as caught:
        storage.put(clip, "job-1", RECORD, Control())
    assert str(caught.value) == f"The finished clip could not be stored: {sentence}; {KEPT}"
    [record, kept] = files(folder)
    assert re.fullmatch(r"job-1\.\d{8}-\d{6}\.[0-9a-f]{32}\.mp4", kept.name)
    assert kept.read_bytes() == clip.read_bytes()
    assert json.loads(record.read_bytes()) == {"job_id": "job-1", "record": RECORD}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (record, kept)} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert str(folder) in caplog.text and "job-1" in caplog.text


def test_a_clip_for_an_unreachable_store_stays_in_the_spool(
    proxy: FaultProxy, storage: SpooledStorage, folder: Path, clip: Path
) -> None:
    proxy.close()
    with pytest.raises(StorageFailed) as caught:
        storage.put(clip, "job-1", RECORD, Control())
    reason = "the object store is not reachable"
    assert str(caught.value) == f"The finished clip could not be stored: {reason}; {KEPT}"
    assert len(files(folder)) == 2


def test_a_stored_clip_is_not_kept(storage: SpooledStorage, folder: Path, clip: Path) -> None:
    assert fetch(storage.put(clip, "job-1", RECORD, Control())) == clip.read_bytes()
    assert not folder.exists()


def test_a_job_that_runs_out_of_time_in_its_upload_keeps_its_clip(
    proxy: FaultProxy, storage: SpooledStorage, folder: Path, clip: Path
) -> None:
    proxy.inject(Fault("stall", times=1000))
    with pytest.raises(DeadlineExceeded):
        storage.put(clip, "job-1", RECORD, Control(deadline_seconds=0.3))
    assert len(files(folder)) == 2


def test_a_cancelled_job_keeps_nothing(
    proxy: FaultProxy, storage: SpooledStorage, folder: Path, clip: Path
) -> None:
    control = Control()
    proxy.inject(Fault("stall", times=1000, then=control.cancel))
    with pytest.raises(Cancelled):
        storage.put(clip, "job-1", RECORD, control)
    assert not folder.exists()


def test_if_the_spool_fails_too_nothing_claims_the_clip(
    proxy: FaultProxy,
    behind: Settings,
    tmp_path: Path,
    clip: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    outage(proxy)
    with pytest.raises(StorageFailed) as caught:
        worker(behind, clip / "spool").put(clip, "job-1", RECORD, Control())
    assert str(caught.value) == AWAY
    assert "job-1 is lost" in caplog.text and "set WAN_SPOOL_DIR" in caplog.text
    caplog.clear()
    with pytest.raises(StorageFailed) as caught:
        worker(behind, tmp_path / "spool").put(tmp_path / "absent", "job-1", RECORD, Control())
    assert KEPT not in str(caught.value)
    assert files(tmp_path / "spool") == []


FULL_DISK = """
import resource, sys
from pathlib import Path
from tests.storage.test_spool import Never
from wan_engine.control import Control
from wan_engine.errors import StorageFailed
from wan_engine.storage import SpooledStorage
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    SpooledStorage(Never(), Path(sys.argv[1])).put(Path(sys.argv[2]), "job-1", {}, Control())
except StorageFailed as error:
    print(error)
"""


class Never(LocalStorage):
    """A store that is down, without a connection."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"))

    def put(self, *_: object) -> str:
        raise StorageFailed("away")

    store = put


@pytest.mark.parametrize(("limit_bytes", "clip_bytes"), [(2 * MIB, 3 * MIB), (10, 5)])
def test_a_full_disk_leaves_no_partial_file(
    tmp_path: Path, folder: Path, limit_bytes: int, clip_bytes: int
) -> None:
    clip = make_clip(tmp_path, clip_bytes)
    command = [sys.executable, "-c", FULL_DISK, folder, clip, str(limit_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "away"
    assert "job-1 is lost" in done.stderr
    assert files(folder) == []


def test_a_kill_while_the_clip_is_copied_leaves_no_partial_file(
    tmp_path: Path, folder: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = _spooling(folder, pipe)
    with pipe.open("wb", buffering=0) as source:
        source.write(b"x" * 3 * MIB)  # returns when most of it was read
        assert eventually(lambda: any(path.stat().st_size for path in files(folder)))
        process.send_signal(signal.SIGKILL)
        process.wait()
    [half] = files(folder)
    assert half.suffix == ".part"
    storage = SpooledStorage(Never(), folder)
    assert storage.finished("job-1", Control()) is None
    storage.flush()
    assert files(folder) == [half], "another worker may be writing it"
    os.utime(half, (time.time() - 4000,) * 2)
    storage.flush()
    assert files(folder) == []


def test_a_kill_between_clip_and_record_leaves_a_clip_that_is_not_used(
    tmp_path: Path, folder: Path
) -> None:
    stop = "import time, wan_engine.storage.spool as s; s.json.dumps = lambda x: time.sleep(60)"
    process = _spooling(folder, make_clip(tmp_path), stop)
    assert eventually(lambda: folder.exists() and len(files(folder, ".mp4")) == 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    storage = SpooledStorage(Never(), folder)
    assert storage.finished("job-1", Control()) is None
    storage.flush()
    assert len(files(folder, ".mp4")) == 1, "another worker may be about to write its record"
    aged(folder, "job-1", timedelta(hours=2))
    for path in files(folder, ".part"):
        os.utime(path, (time.time() - 4000,) * 2)
    storage.flush()
    assert files(folder) == []


def _spooling(folder: Path, clip: Path, first: str = "") -> subprocess.Popen[bytes]:
    code = f"{first}\n{FULL_DISK}"
    return subprocess.Popen([sys.executable, "-c", code, folder, clip, str(64 * MIB)])


# --- uploading ------------------------------------------------------------------------------------


def test_the_next_start_uploads_kept_clips_and_logs_their_urls(
    proxy: FaultProxy,
    storage: SpooledStorage,
    behind: Settings,
    folder: Path,
    bucket: Store,
    clip: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spool(proxy, storage, clip, "job-1")
    caplog.clear()
    caplog.set_level("INFO", "wan_engine")
    worker(behind, folder).flush()
    assert files(folder) == []
    [name] = bucket.clips()
    assert bucket.contents()[name] == clip.read_bytes()
    [line] = [line for line in caplog.messages if "kept clip of job job-1 is stored: http" in line]
    assert name.rpartition("/")[2] in line
    assert "?" not in line and "Signature" not in caplog.text
    found = bucket.storage.finished("job-1", Control())
    assert found is not None and found[1] == RECORD
    assert fetch(found[0]) == clip.read_bytes()


def test_the_oldest_is_uploaded_first_and_the_first_failure_stops_the_rest(
    proxy: FaultProxy,
    storage: SpooledStorage,
    folder: Path,
    bucket: Store,
    clip: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spool(proxy, storage, clip, "young", "old", "middle")
    aged(folder, "old", timedelta(hours=3))
    aged(folder, "middle", timedelta(hours=2))
    refused = Fault(
        "answer", 1000, lambda request: "/middle/" in request.target, 0, 403, "AccessDenied"
    )
    proxy.inject(refused)
    caplog.clear()
    storage.flush()
    puts = [request.target for request in proxy.seen if ".mp4" in request.target]
    assert [target.split("/")[-2] for target in puts] == ["old", "middle"]
    assert len(files(folder, ".mp4")) == 2
    assert "allow it s3:PutObject" in caplog.text and "the next start tries again" in caplog.text
    proxy.mend()
    storage.flush()
    assert files(folder) == []
    assert len(bucket.clips()) == 3


def test_a_clip_whose_record_is_not_stored_stays(
    proxy: FaultProxy, storage: SpooledStorage, folder: Path, bucket: Store, clip: Path
) -> None:
    spool(proxy, storage, clip, "job-1")
    proxy.inject(Fault("answer", 5, lambda request: "/jobs/" in request.target))
    storage.flush()
    assert len(files(folder)) == 2
    storage.flush()
    assert files(folder) == []
    assert len(bucket.clips()) == 1, "the same object each time"


def test_a_store_that_is_back_gets_the_rest_too(
    proxy: FaultProxy, storage: SpooledStorage, folder: Path, bucket: Store, clip: Path
) -> None:
    spool(proxy, storage, clip, "job-1", "job-2")
    storage.put(clip, "job-3", RECORD, Control())
    assert eventually(lambda: not working())
    assert files(folder) == []
    assert len(bucket.clips()) == len(bucket.records()) == 3


def test_clips_that_are_too_old_are_removed(
    proxy: FaultProxy,
    storage: SpooledStorage,
    folder: Path,
    bucket: Store,
    clip: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spool(proxy, storage, clip, "old", "young")
    aged(folder, "old", timedelta(days=7, minutes=1))
    aged(folder, "young", timedelta(days=6, hours=23))
    storage.flush()
    assert files(folder) == []
    [name] = bucket.clips()
    assert "/young/" in name
    assert "old." in caplog.text and "waited for too long and is removed" in caplog.text


def test_the_age_limit_is_a_setting(
    proxy: FaultProxy, behind: Settings, folder: Path, bucket: Store, clip: Path
) -> None:
    storage = worker(behind, folder, keep_days=0.5)
    spool(proxy, storage, clip, "job-1")
    aged(folder, "job-1", timedelta(hours=13))
    storage.flush()
    assert files(folder) == [] and bucket.clips() == []


def test_several_workers_can_flush_at_once(
    proxy: FaultProxy,
    storage: SpooledStorage,
    behind: Settings,
    folder: Path,
    bucket: Store,
    clip: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    jobs = [f"job-{number}" for number in range(8)]
    spool(proxy, storage, clip, *jobs)
    caplog.clear()
    calls: list[Callable[[], object]] = [worker(behind, folder).flush for _ in range(3)]
    calls.append(lambda: storage.finished("job-5", Control()))
    found = _together(calls)[-1]
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.message for record in errors if record.name.endswith("spool")] == []
    assert files(folder) == []
    assert len(bucket.clips()) == len(bucket.records()) == len(jobs)
    assert isinstance(found, tuple) and fetch(found[0]) == clip.read_bytes()
    for job in jobs:
        assert bucket.storage.finished(job, Control()) is not None


def _together(calls: list[Callable[[], object]]) -> list[object]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda call: call(), calls))


FLUSH = """
import sys, logging
from pathlib import Path
from wan_engine.settings import Settings
from wan_engine.storage import open_storage
logging.basicConfig(level="ERROR")
open_storage(Settings.load()).flush()
"""


def test_two_processes_can_flush_at_once(
    proxy: FaultProxy,
    storage: SpooledStorage,
    behind: Settings,
    folder: Path,
    bucket: Store,
    clip: Path,
) -> None:
    jobs = [f"job-{number}" for number in range(6)]
    spool(proxy, storage, clip, *jobs)
    environment = {
        **os.environ,
        "BUCKET_ENDPOINT_URL": proxy.url,
        "BUCKET_NAME": BUCKET,
        "BUCKET_ACCESS_KEY_ID": "k",
        "BUCKET_SECRET_ACCESS_KEY": "s",
        "WAN_S3_PREFIX": behind.s3_prefix,
        "WAN_SPOOL_DIR": str(folder),
    }
    both = [
        subprocess.Popen([sys.executable, "-c", FLUSH], env=environment, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    assert [one.communicate(timeout=60)[1] for one in both] == [b"", b""]
    assert files(folder) == []
    assert len(bucket.clips()) == len(bucket.records()) == len(jobs)


def test_a_worker_killed_in_its_flush_loses_nothing(
    proxy: FaultProxy, storage: SpooledStorage, folder: Path, bucket: Store, clip: Path
) -> None:
    spool(proxy, storage, clip, "job-1")
    [record, kept] = files(folder)
    copies = record.read_bytes(), kept.read_bytes()
    storage.flush()
    kept.write_bytes(copies[1])  # as if it had died before it removed anything ...
    record.write_bytes(copies[0])
    storage.flush()
    assert files(folder) == []
    kept.write_bytes(copies[1])  # ... or after the first of the two
    aged(folder, "job-1", timedelta(hours=2))
    storage.flush()
    assert files(folder) == []
    assert len(bucket.clips()) == len(bucket.records()) == 1


@pytest.mark.parametrize("folder_is", ["absent", "a file"])
def test_a_flush_without_a_folder_raises_nothing(tmp_path: Path, folder_is: str) -> None:
    folder = tmp_path / "spool"
    if folder_is == "a file":
        folder.write_bytes(b"")
    storage = SpooledStorage(Never(), folder)
    storage.flush()
    assert storage.finished("job-1", Control()) is None


# --- repeated jobs --------------------------------------------------------------------------------


def test_a_kept_job_is_stored_when_it_comes_again(
    proxy: FaultProxy, storage: SpooledStorage, folder: Path, bucket: Store, clip: Path
) -> None:
    spool(proxy, storage, clip, "job-1", "job-2")
    found = storage.finished("job-1", Control())
    assert found is not None and found[1] == RECORD
    assert fetch(found[0]) == clip.read_bytes()
    assert len(files(folder)) == 2, "the other job's"
    again = storage.finished("job-1", Control())
    assert again is not None and again[0].partition("?")[0] == found[0].partition("?")[0]
    assert len(bucket.clips()) == 1


def test_a_kept_job_is_not_rendered_again_while_the_store_is_away(
    proxy: FaultProxy, storage: SpooledStorage, folder: Path, clip: Path
) -> None:
    spool(proxy, storage, clip, "job-1")
    outage(proxy)
    for _ in range(2):
        with pytest.raises(StorageFailed) as caught:
            storage.finished("job-1", Control())
        assert str(caught.value) == f"{AWAY}; {KEPT}"
    assert len(files(folder)) == 2
    proxy.mend()
    assert storage.finished("job-1", Control()) is not None
    assert files(folder) == []


def test_an_unknown_job_is_rendered_while_the_store_is_away(
    proxy: FaultProxy, storage: SpooledStorage, clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool(proxy, storage, clip, "job-1")
    outage(proxy)
    assert storage.finished("job-2", Control()) is None
    assert "record of job job-2 not read, so it is rendered" in caplog.text


def test_a_job_in_the_bucket_is_not_uploaded_again(
    proxy: FaultProxy, storage: SpooledStorage, folder: Path, clip: Path
) -> None:
    storage.put(clip, "job-1", RECORD, Control())
    proxy.seen.clear()
    assert storage.finished("job-1", Control()) is not None
    assert [request.method for request in proxy.seen] == ["GET", "HEAD"]


@pytest.mark.parametrize("while_asked_for", ["record", "clip"])
def test_a_job_that_another_worker_delivers_meanwhile_is_finished(
    proxy: FaultProxy,
    storage: SpooledStorage,
    behind: Settings,
    folder: Path,
    bucket: Store,
    clip: Path,
    while_asked_for: str,
) -> None:
    spool(proxy, storage, clip, "job-1")
    other = worker(behind, folder)
    if while_asked_for == "record":
        late = Fault("answer", 1, _is_record, 0, 404, "NoSuchKey", other.flush)
    else:
        late = Fault("answer", 1, _is_clip, 0, 403, "AccessDenied", other.flush)
    proxy.inject(late)
    found = storage.finished("job-1", Control())
    assert found is not None and fetch(found[0]) == clip.read_bytes()
    assert proxy.injected["answer"] == 1 and len(bucket.clips()) == 1


def test_a_clip_that_another_worker_flushes_meanwhile_stops_nobody(
    proxy: FaultProxy,
    storage: SpooledStorage,
    behind: Settings,
    folder: Path,
    bucket: Store,
    clip: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spool(proxy, storage, clip, "job-1", "job-2")
    caplog.clear()
    other = worker(behind, folder)
    proxy.inject(Fault("answer", 1, _is_clip, 0, 403, "AccessDenied", other.flush))
    storage.flush()
    assert files(folder) == []
    assert proxy.injected["answer"] == 1
    assert "the next start tries again" not in caplog.text
    assert len(bucket.clips()) == len(bucket.records()) == 2


def _is_record(request: Request) -> bool:
    return request.method == "GET" and "/jobs/" in request.target


def _is_clip(request: Request) -> bool:
    return request.method == "PUT" and ".mp4" in request.target


@pytest.mark.parametrize("end", ["cancel", "deadline"])
def test_a_job_that_ends_while_its_kept_clip_is_uploaded_keeps_the_clip(
    proxy: FaultProxy, storage: SpooledStorage, folder: Path, clip: Path, end: str
) -> None:
    spool(proxy, storage, clip, "job-1")
    control = Control(deadline_seconds=0.5 if end == "deadline" else None)
    then = control.cancel if end == "cancel" else (lambda: None)
    proxy.inject(Fault("stall", times=1000, when=_is_clip, then=then))
    started = time.monotonic()
    with pytest.raises(Cancelled if end == "cancel" else DeadlineExceeded):
        storage.finished("job-1", control)
    assert time.monotonic() - started < 0.5 + 1
    assert len(files(folder)) == 2


# --- other files in the folder --------------------------------------------------------------------


DAMAGED = [
    b"", b"{", b"\xff", b"[]", b"null", b'{"job_id": "job-1"}', b'{"job_id": 5, "record": {}}',
    b'{"job_id": "job-7", "record": 5}', b'{"job_id": "other", "record": {}}',
]  # fmt: skip


def test_damaged_records_do_not_stop_the_others(
    tmp_path: Path, folder: Path, clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = SpooledStorage(Never(), folder)
    for job in [f"job-{number}" for number in range(len(DAMAGED))] + ["whole"]:
        with pytest.raises(StorageFailed, match=KEPT):
            storage.put(clip, job, RECORD, Control())
        aged(folder, job, timedelta(days=1))
    for number, damage in enumerate(DAMAGED):
        [record] = folder.glob(f"job-{number}.*.json")
        record.write_bytes(damage)
    back = SpooledStorage(LocalStorage(tmp_path / "out"), folder)
    back.flush()
    [stored] = (tmp_path / "out").glob("*.mp4")
    assert "-whole-" in stored.name
    assert len(files(folder)) == 2 * len(DAMAGED)
    assert caplog.text.count("is damaged, so its clip stays") == len(DAMAGED)
    for number in range(len(DAMAGED)):
        assert back.finished(f"job-{number}", Control()) is None


def test_links_are_not_followed(
    proxy: FaultProxy, storage: SpooledStorage, folder: Path, bucket: Store, clip: Path
) -> None:
    secret = clip.with_name("secret")
    secret.write_bytes(b'{"job_id": "job-2", "record": {}}')
    spool(proxy, storage, clip, "job-1", "job-2")
    [kept] = folder.glob("job-1.*.mp4")
    kept.unlink()
    kept.symlink_to(secret)
    [record] = folder.glob("job-2.*.json")
    record.unlink()
    record.symlink_to(secret)
    (folder / "half.part").symlink_to(secret)
    (folder / f"job-4.20200101-000000.{'0' * 32}.mp4").symlink_to(secret)
    storage.flush()
    assert storage.finished("job-1", Control()) is None
    assert storage.finished("job-2", Control()) is None
    assert bucket.contents() == {}
    assert secret.exists()


def test_other_files_are_left_alone(folder: Path) -> None:
    folder.mkdir(parents=True)
    names = ["notes.txt", "a.mp4", "film.part", "a.json", f"a.20201301-000000.{'0' * 32}.mp4",
             f"a.20200101-000000.{'0' * 31}.mp4"]  # fmt: skip
    for name in names:
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (1, 1))
    (folder / f"a.20200101-000000.{'1' * 32}.json").mkdir()
    (folder / f"b.20990101-000000.{'1' * 32}.mp4").write_bytes(b"x")
    os.mkfifo(folder / f"b.20990101-000000.{'1' * 32}.json")
    SpooledStorage(Never(), folder).flush()
    assert {path.name for path in files(folder)} >= set(names)


@how(max_examples=60, deadline=None)
@given(job=st.one_of(st.text(), st.sampled_from(ODD_IDS), st.text("./\\\0-a", max_size=80)))
def test_any_job_id_stays_inside_and_is_found_again(
    tmp_path_factory: pytest.TempPathFactory, job: str
) -> None:
    root = tmp_path_factory.mktemp("volume")
    clip = make_clip(root, 10)
    storage = SpooledStorage(Never(), root / "spool")
    with pytest.raises(StorageFailed, match=KEPT):
        storage.put(clip, job, {"seed": 1}, Control())
    assert {path.name for path in root.iterdir()} == {"clip.mp4", "spool"}
    assert [path.suffix for path in files(root / "spool")] == [".json", ".mp4"]
    back = SpooledStorage(LocalStorage(root / "out"), root / "spool")
    assert back.finished(job + "x", Control()) is None
    found = back.finished(job, Control())
    assert found is not None and found[1] == {"seed": 1}
    assert fetch(found[0]) == clip.read_bytes()
    assert files(root / "spool") == []


# --- at start -------------------------------------------------------------------------------------


def test_check_reports_waiting_clips(
    proxy: FaultProxy, storage: SpooledStorage, folder: Path, clip: Path
) -> None:
    assert storage.check().endswith(f"clips that it does not accept wait in {folder} (0 now)")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    spool(proxy, storage, clip, "job-1", "job-2")
    line = storage.check()
    assert line.startswith("clips go to the bucket") and line.endswith("(2 now)")
    assert "\n" not in line


def test_check_refuses_a_folder_that_cannot_be_written(clip: Path) -> None:
    with pytest.raises(ConfigurationError, match="set WAN_SPOOL_DIR to a folder"):
        SpooledStorage(Never(), clip).check()


def test_the_settings_put_a_spool_in_front_of_any_store(
    behind: Settings, folder: Path, tmp_path: Path
) -> None:
    for given_settings in (behind, Settings(output_dir=tmp_path / "out")):
        assert not isinstance(open_storage(given_settings), SpooledStorage)
        spooled = given_settings.model_copy(update={"spool_dir": folder})
        assert isinstance(open_storage(spooled), SpooledStorage)
    assert not folder.exists()
