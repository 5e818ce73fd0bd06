"""One contract for both stores, then what only a folder or only a bucket has."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread, Timer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import boto3
import pytest
from moto.server import ThreadedMotoServer

from wan_engine.control import Control
from wan_engine.errors import Cancelled, ConfigurationError, DeadlineExceeded, StorageFailed
from wan_engine.settings import Settings
from wan_engine.storage import (
    Bucket,
    LocalStorage,
    S3Storage,
    Storage,
    find_bucket,
    job_name,
    open_storage,
)

MIB = 1024 * 1024
BUCKET, PREFIX = "clips-bucket", "wan clips/v1"
ACCESS_KEY, SECRET_KEY = "AKIDEXAMPLE0000TEST", "secret/EXAMPLE+key"
RECORD = {"cost": 0.5, "seed": 7, "warnings": ["texture é"]}
ODD_IDS = [
    "a/b", "a-b", "a.b", "a b", "../../etc/passwd", "..", ".", "", "/", "é", "日本", "\ud800",
    "a\0b", "x" * 500, "x" * 501, "x" * 64, "x" * 65, "f1c3-4d5e-u1", job_name("a/b"),
    job_name("x" * 500),
]  # fmt: skip


class StopAt(Control):
    """Cancelled at the given checkpoint."""

    def __init__(self, checkpoint: int) -> None:
        super().__init__()
        self.left = checkpoint

    def checkpoint(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.cancel()
        super().checkpoint()


@dataclass
class Store:
    """A storage and the back door of its tests: names and bytes of all that it holds."""

    storage: Storage
    contents: Callable[[], dict[str, bytes]]
    write: Callable[[str, bytes | None], None]

    def records(self) -> list[str]:
        return [name for name in self.contents() if name.endswith(".json")]

    def clips(self) -> list[str]:
        return [name for name in self.contents() if name.endswith(".mp4")]


def settings(**values: Any) -> Settings:
    keys = {"bucket_access_key_id": ACCESS_KEY, "bucket_secret_access_key": SECRET_KEY}
    return Settings(**{**keys, **values})


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("AWS_", "BUCKET_", "WAN_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint: str) -> Iterator[Any]:
    """A client of the test's own, with an empty bucket."""
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
    client.create_bucket(Bucket=BUCKET)
    yield client
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])
    client.delete_bucket(Bucket=BUCKET)
    client.close()


@pytest.fixture
def bucket_settings(s3: Any, endpoint: str) -> dict[str, Any]:
    return {"bucket_endpoint_url": endpoint, "bucket_name": BUCKET, "s3_prefix": f"/{PREFIX}/"}


def local_store(folder: Path) -> Store:
    def contents() -> dict[str, bytes]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    def write(name: str, data: bytes | None) -> None:
        (folder / name).unlink() if data is None else (folder / name).write_bytes(data)

    return Store(LocalStorage(folder), contents, write)


def s3_store(client: Any, values: dict[str, Any]) -> Store:
    def contents() -> dict[str, bytes]:
        items = client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        get = client.get_object
        return {i["Key"]: get(Bucket=BUCKET, Key=i["Key"])["Body"].read() for i in items}

    def write(name: str, data: bytes | None) -> None:
        if data is None:
            client.delete_object(Bucket=BUCKET, Key=name)
        else:
            client.put_object(Bucket=BUCKET, Key=name, Body=data)

    return Store(S3Storage(settings(**values)), contents, write)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return local_store(tmp_path / "made" / "on demand")
    values = request.getfixturevalue("bucket_settings")
    return s3_store(request.getfixturevalue("s3"), values)


def make_clip(folder: Path, size: int = 3000) -> Path:
    path = folder / "clip.mp4"
    path.write_bytes(os.urandom(size))
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path)


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return bytes(answer.read())


# --- the contract ---------------------------------------------------------------------------------


def test_the_url_gives_the_clip(store: Store, clip: Path) -> None:
    url = store.storage.put(clip, "job-1", RECORD, Control())
    assert fetch(url) == clip.read_bytes()
    assert clip.exists()


def test_a_finished_job_is_found_again(store: Store, clip: Path) -> None:
    assert store.storage.finished("job-1") is None
    store.storage.put(clip, "job-1", RECORD, Control())
    found = store.storage.finished("job-1")
    assert found is not None
    url, record = found
    assert fetch(url) == clip.read_bytes()
    assert record == RECORD
    assert store.storage.finished("job-2") is None
    assert store.storage.finished("job") is None


def test_a_second_put_of_a_job_wins(store: Store, clip: Path, tmp_path: Path) -> None:
    store.storage.put(clip, "job-1", {"seed": 1}, Control())
    clip = make_clip(tmp_path)
    store.storage.put(clip, "job-1", {"seed": 2}, Control())
    found = store.storage.finished("job-1")
    assert found is not None
    assert (fetch(found[0]), found[1]) == (clip.read_bytes(), {"seed": 2})


def test_a_vanished_clip_is_not_finished(store: Store, clip: Path) -> None:
    store.storage.put(clip, "job-1", RECORD, Control())
    [name] = store.clips()
    store.write(name, None)
    assert store.storage.finished("job-1") is None


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
def test_a_damaged_record_is_not_finished(store: Store, clip: Path, damage: bytes) -> None:
    store.storage.put(clip, "job-1", RECORD, Control())
    [name] = store.records()
    store.write(name, damage)
    assert store.storage.finished("job-1") is None


@pytest.mark.parametrize("size", [0, 3000, 2 * MIB], ids=["empty", "small", "large"])
@pytest.mark.parametrize("checkpoint", [1, 2, 3])
def test_cancelling_leaves_nothing(
    store: Store, tmp_path: Path, size: int, checkpoint: int
) -> None:
    control = StopAt(checkpoint)
    try:
        store.storage.put(make_clip(tmp_path, size), "job-1", RECORD, control)
    except Cancelled:
        assert store.contents() == {}
        assert store.storage.finished("job-1") is None
    else:
        assert not control.cancelled
        assert size <= 3000, "a long transfer asks often"


def test_the_deadline_ends_it(store: Store, clip: Path) -> None:
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
        found = store.storage.finished(job)
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


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", ["f1c3ab-u1", "Job_1", "x" * 64, "12345678-1234-1234-123456789abc"])
def test_a_plain_job_id_is_its_own_name(job: str) -> None:
    assert job_name(job) == job


def test_other_job_ids_get_a_digest() -> None:
    names = [job_name(job) for job in ODD_IDS]
    assert len(set(names)) == len(ODD_IDS)
    assert all(0 < len(name) <= 64 for name in names)


# --- a folder -------------------------------------------------------------------------------------


def test_local_names(tmp_path: Path, clip: Path) -> None:
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
        assert store.storage.finished("job-1") is None


def test_a_full_disk(
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


def test_a_folder_that_cannot_be_made(tmp_path: Path, clip: Path) -> None:
    storage = LocalStorage(clip / "out")
    with pytest.raises(StorageFailed) as caught:
        storage.put(clip, "job-1", RECORD, Control())
    assert str(caught.value) == "The finished clip could not be stored"
    with pytest.raises(ConfigurationError, match="set WAN_OUTPUT_DIR to a folder"):
        storage.check()
    assert storage.finished("job-1") is None


def test_a_clip_without_a_record_is_still_a_clip(
    tmp_path: Path, clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".jobs").write_text("in the way")
    storage = LocalStorage(tmp_path / "out")
    assert fetch(storage.put(clip, "job-1", RECORD, Control())) == clip.read_bytes()
    assert storage.finished("job-1") is None
    assert "no record of job job-1" in caplog.text


# --- a bucket -------------------------------------------------------------------------------------


def test_signed_urls(s3: Any, bucket_settings: dict[str, Any], clip: Path) -> None:
    store = s3_store(s3, bucket_settings)
    url = store.storage.put(clip, "job-1", RECORD, Control())
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.headers["Content-Type"] == "video/mp4"
        assert answer.read() == clip.read_bytes()
    query = parse_qs(urlsplit(url).query)
    assert query["X-Amz-Expires"] == ["604800"]
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    # Google and R2 do not know this parameter, which boto adds when it wants to validate.
    assert not [name for name in query if "checksum" in name.lower()]
    today = time.strftime("%Y/%m/%d", time.gmtime())
    [name] = store.clips()
    assert name.startswith(f"{PREFIX}/{today}/job-1/")
    assert store.records() == [f"{PREFIX}/jobs/job-1.json"]


def test_no_prefix(s3: Any, bucket_settings: dict[str, Any], clip: Path) -> None:
    store = s3_store(s3, {**bucket_settings, "s3_prefix": ""})
    store.storage.put(clip, "job-1", RECORD, Control())
    assert store.records() == ["jobs/job-1.json"]
    assert store.clips()[0].startswith("20")


def test_public_urls(s3: Any, endpoint: str, bucket_settings: dict[str, Any], clip: Path) -> None:
    s3.put_bucket_acl(Bucket=BUCKET, ACL="public-read")
    base = f"{endpoint}/{BUCKET}"
    store = s3_store(s3, {**bucket_settings, "public_base_url": f"{base}/"})
    url = store.storage.put(clip, "job-1", RECORD, Control())
    assert url.startswith(f"{base}/wan%20clips/v1/20")
    assert "?" not in url
    found = store.storage.finished("job-1")
    assert found is not None
    assert found[0] == url
    assert store.storage.check().endswith(f"links below {base}")


def test_multipart(s3: Any, bucket_settings: dict[str, Any], tmp_path: Path) -> None:
    store = s3_store(s3, bucket_settings)
    clip = make_clip(tmp_path, 17 * MIB)
    url = store.storage.put(clip, "job-1", RECORD, Control())
    assert fetch(url) == clip.read_bytes()
    [name] = store.clips()
    head = s3.head_object(Bucket=BUCKET, Key=name)
    assert head["ETag"].endswith('-2"')
    assert head["ContentType"] == "video/mp4"


@pytest.mark.parametrize("checkpoint", [2, 40, 68])
def test_cancelled_multipart_leaves_no_parts(
    s3: Any, bucket_settings: dict[str, Any], tmp_path: Path, checkpoint: int
) -> None:
    store = s3_store(s3, bucket_settings)
    started = time.monotonic()
    with pytest.raises(Cancelled):
        store.storage.put(make_clip(tmp_path, 17 * MIB), "job-1", RECORD, StopAt(checkpoint))
    assert time.monotonic() - started < 5
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=BUCKET)
    assert store.contents() == {}


def test_a_refused_connection(
    bucket_settings: dict[str, Any], clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = S3Storage(
        settings(**{**bucket_settings, "bucket_endpoint_url": "http://127.0.0.1:1"})
    )
    started = time.monotonic()
    with pytest.raises(StorageFailed) as caught:
        storage.put(clip, "job-1", RECORD, Control())
    reason = "the object store is not reachable"
    assert str(caught.value) == f"The finished clip could not be stored: {reason}"
    assert "correct BUCKET_ENDPOINT_URL" in caplog.text
    assert storage.finished("job-1") is None
    with pytest.raises(ConfigurationError, match="is not reachable; correct BUCKET_ENDPOINT_URL"):
        storage.check()
    assert time.monotonic() - started < 5


def test_a_cancelled_job_is_cancelled_whatever_the_store_says(
    bucket_settings: dict[str, Any], clip: Path
) -> None:
    values = {**bucket_settings, "bucket_endpoint_url": "http://127.0.0.1:1"}
    with pytest.raises(Cancelled):
        S3Storage(settings(**values)).put(clip, "job-1", RECORD, StopAt(2))


def test_a_wrong_bucket(
    bucket_settings: dict[str, Any], clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = S3Storage(settings(**{**bucket_settings, "bucket_name": "absent-bucket"}))
    with pytest.raises(StorageFailed) as caught:
        storage.put(clip, "job-1", RECORD, Control())
    assert str(caught.value) == (
        "The finished clip could not be stored: the object store refused it"
    )
    assert "create it or correct BUCKET_NAME" in caplog.text
    assert storage.finished("job-1") is None
    with pytest.raises(ConfigurationError, match="create it or correct BUCKET_NAME"):
        storage.check()


class Answering(ThreadingHTTPServer):
    """An object store that answers every request alike, and remembers what it was asked."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status = status
        text = f"<Error><Code>{code}</Code><Message>m</Message></Error>" if code else ""
        self.body = text.encode()
        self.seen: list[tuple[str, dict[str, str]]] = []


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # or botocore waits a second for "100 Continue"
    server: Answering

    def _answer(self) -> None:
        self.server.seen.append((self.command, dict(self.headers)))
        size = int(self.headers.get("Content-Length", 0))
        if len(self.rfile.read(size)) < size:  # the caller hung up
            self.close_connection = True
            return
        body = b"" if self.command == "HEAD" else self.server.body
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_DELETE = _answer

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def answering() -> Iterator[Callable[[int, str], tuple[Answering, S3Storage]]]:
    servers = []

    def start(status: int, code: str) -> tuple[Answering, S3Storage]:
        server = Answering(status, code)
        servers.append(server)
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        url = f"http://127.0.0.1:{server.server_port}"
        return server, S3Storage(settings(bucket_endpoint_url=url, bucket_name=BUCKET), attempts=1)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "sentence", "advice"),
    [
        (403, "AccessDenied", "the object store refused it", "allow it s3:PutObject"),
        (403, "SignatureDoesNotMatch", "the object store refused it", "BUCKET_SECRET_ACCESS_KEY"),
        (403, "InvalidAccessKeyId", "the object store refused it", "BUCKET_ACCESS_KEY_ID"),
        (403, "RequestTimeTooSkewed", "the object store refused it", "clock"),
        (400, "AuthorizationHeaderMalformed", "the object store refused it", "WAN_S3_REGION"),
        (507, "QuotaExceeded", "the object store is not available", "QuotaExceeded"),
        (503, "SlowDown", "the object store is not available", "SlowDown"),
    ],
)
def test_what_the_store_answers(
    answering: Callable[[int, str], tuple[Answering, S3Storage]],
    clip: Path,
    caplog: pytest.LogCaptureFixture,
    status: int,
    code: str,
    sentence: str,
    advice: str,
) -> None:
    _, storage = answering(status, code)
    with pytest.raises(StorageFailed) as caught:
        storage.put(clip, "job-1", RECORD, Control())
    assert str(caught.value) == f"The finished clip could not be stored: {sentence}"
    assert advice in caplog.text
    assert SECRET_KEY not in caplog.text
    caplog.clear()
    assert storage.finished("job-1") is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    with pytest.raises(ConfigurationError, match="The bucket cannot be used: "):
        storage.check()


def test_no_checksums_that_other_stores_refuse(
    answering: Callable[[int, str], tuple[Answering, S3Storage]], clip: Path
) -> None:
    server, storage = answering(200, "")
    storage.put(clip, "job-1", RECORD, Control())
    assert [method for method, _ in server.seen] == ["PUT", "PUT"]
    for _, headers in server.seen:
        names = " ".join(headers).lower()
        assert "checksum" not in names
        assert "crc" not in names
        assert "Content-Encoding" not in headers


def test_cancelling_does_not_send_again(
    answering: Callable[[int, str], tuple[Answering, S3Storage]], tmp_path: Path
) -> None:
    server, _ = answering(200, "")
    url = f"http://127.0.0.1:{server.server_port}"
    storage = S3Storage(settings(bucket_endpoint_url=url, bucket_name=BUCKET))
    with pytest.raises(Cancelled):
        storage.put(make_clip(tmp_path, 4 * MIB), "job-1", RECORD, StopAt(4))
    assert [method for method, _ in server.seen] == ["PUT", "DELETE"]


@pytest.mark.parametrize(
    ("values", "warned"),
    [
        ({"bucket_access_key_id": "ASIAEXAMPLE"}, True),
        ({"bucket_access_key_id": "AKIAEXAMPLE"}, False),
        ({"bucket_access_key_id": "ASIAEXAMPLE", "public_base_url": "https://c.example"}, False),
    ],
)
def test_session_keys(
    caplog: pytest.LogCaptureFixture, values: dict[str, Any], warned: bool
) -> None:
    S3Storage(settings(bucket_endpoint_url="https://s3.amazonaws.com/bkt", **values))
    assert ("signed links end with its session" in caplog.text) == warned
    assert "ASIAEXAMPLE" not in caplog.text


AWS, R2 = "s3.us-west-2.amazonaws.com", "0123456789abcdef0123456789abcdef.r2.cloudflarestorage.com"
SPACES = "nyc3.digitaloceanspaces.com"
IN_AWS, AT_AWS = (f"https://{AWS}", "us-west-2", "virtual"), f"https://bkt.{AWS}/k"
IN_SPACES, AT_SPACES = (f"https://{SPACES}", "nyc3", "virtual"), f"https://bkt.{SPACES}/k"
DOTTED, AT_DOTTED = (f"https://{AWS}", "us-west-2", "path"), f"https://{AWS}/a.bkt/k"


@pytest.mark.parametrize(
    ("url", "name", "expected", "signed"),
    [
        # plain, with BUCKET_NAME
        (f"https://{AWS}", "bkt", IN_AWS, AT_AWS),
        (f"https://{AWS}/", "bkt", IN_AWS, AT_AWS),
        (f"https://{AWS}", "s3", IN_AWS, None),
        (f"https://{AWS}", "a.bkt", DOTTED, AT_DOTTED),
        ("https://s3.amazonaws.com", "bkt",
         ("https://s3.amazonaws.com", "us-east-1", "virtual"), None),
        ("https://s3-eu-west-1.amazonaws.com", "bkt",
         ("https://s3-eu-west-1.amazonaws.com", "eu-west-1", "virtual"), None),
        ("https://s3.cn-north-1.amazonaws.com.cn", "bkt",
         ("https://s3.cn-north-1.amazonaws.com.cn", "cn-north-1", "virtual"),
         "https://bkt.s3.cn-north-1.amazonaws.com.cn/k"),
        (f"https://{SPACES}", "bkt", IN_SPACES, AT_SPACES),
        (f"https://{SPACES}", "nyc3", IN_SPACES, None),
        (f"https://{R2}", "bkt", (f"https://{R2}", "auto", "path"), f"https://{R2}/bkt/k"),
        ("http://10.0.0.5:9000", "bkt", ("http://10.0.0.5:9000", "us-east-1", "path"),
         "http://10.0.0.5:9000/bkt/k"),
        ("http://[::1]:9000", "bkt", ("http://[::1]:9000", "us-east-1", "path"),
         "http://[::1]:9000/bkt/k"),
        ("http://localhost:9000", "bkt", ("http://localhost:9000", "us-east-1", "path"),
         "http://localhost:9000/bkt/k"),
        ("http://minio:9000", "minio", ("http://minio:9000", "us-east-1", "path"), None),
        ("http://minio.local", "minio", ("http://minio.local", "us-east-1", "path"),
         "http://minio.local/minio/k"),
        ("https://storage.googleapis.com", "bkt",
         ("https://storage.googleapis.com", "us-east-1", "path"), None),
        ("https://ref.supabase.co/storage/v1/s3", "bkt",
         ("https://ref.supabase.co/storage/v1/s3", "us-east-1", "path"),
         "https://ref.supabase.co/storage/v1/s3/bkt/k"),
        # the bucket is the first host label, named again or not
        (f"https://bkt.{AWS}", None, IN_AWS, AT_AWS),
        (f"https://bkt.{AWS}", "bkt", IN_AWS, AT_AWS),
        (f"https://a.bkt.{AWS}", None, DOTTED, AT_DOTTED),
        ("https://bkt.s3.dualstack.eu-west-1.amazonaws.com", None,
         ("https://s3.dualstack.eu-west-1.amazonaws.com", "eu-west-1", "virtual"), None),
        (f"https://bkt.{SPACES}", None, IN_SPACES, AT_SPACES),
        (f"https://bkt.{SPACES}", "bkt", IN_SPACES, None),
        ("https://bkt.s3.us-west-004.backblazeb2.com", None,
         ("https://s3.us-west-004.backblazeb2.com", "us-west-004", "virtual"), None),
        (f"https://bkt.{R2}", "bkt", (f"https://{R2}", "auto", "virtual"), f"https://bkt.{R2}/k"),
        ("https://bkt.minio.example:9000", "bkt",
         ("https://minio.example:9000", "us-east-1", "virtual"),
         "https://bkt.minio.example:9000/k"),
        # the bucket is the path, named again or not
        ("https://minio.example/bkt", None, ("https://minio.example", "us-east-1", "path"),
         "https://minio.example/bkt/k"),
        ("https://minio.example/bkt/", "bkt", ("https://minio.example", "us-east-1", "path"), None),
        ("http://127.0.0.1:9000/bkt", None, ("http://127.0.0.1:9000", "us-east-1", "path"), None),
        (f"https://{R2}/bkt", None, (f"https://{R2}", "auto", "path"), f"https://{R2}/bkt/k"),
        (f"https://{AWS}/bkt", None, IN_AWS, AT_AWS),
        (f"https://bkt.{AWS}/bkt", None, IN_AWS, None),
    ],
)  # fmt: skip
def test_endpoints(
    url: str, name: str | None, expected: tuple[str, str, str], signed: str | None
) -> None:
    found = find_bucket(url, name)
    assert (found.endpoint, found.region, found.addressing) == expected
    assert found.name in (name, "bkt", "a.bkt")
    if signed:
        storage = S3Storage(settings(bucket_endpoint_url=url, bucket_name=name))
        assert storage._url("k").split("?")[0] == signed


def test_region_and_addressing_can_be_said() -> None:
    found = find_bucket(f"https://bkt.{AWS}", None, "eu-north-1", "path")
    assert found == Bucket(f"https://{AWS}", "bkt", "eu-north-1", "path")
    found = find_bucket("https://minio.example", "bkt", None, "virtual")
    assert found == Bucket("https://minio.example", "bkt", "us-east-1", "virtual")
    found = find_bucket("https://store.minio.example", "store", None, "path")
    assert found == Bucket("https://store.minio.example", "store", "us-east-1", "path")


@pytest.mark.parametrize(
    "host",
    [AWS, "s3.amazonaws.com", "minio.local", "localhost:9000", "10.0.0.5", R2, SPACES,
     "bkt.minio.example", "abc.r2.cloudflarestorage.com", "host/some/path"],
)  # fmt: skip
def test_no_bucket_to_be_found(host: str) -> None:
    with pytest.raises(ConfigurationError, match="set BUCKET_NAME"):
        find_bucket(f"https://{host}")


@pytest.mark.parametrize(
    "url", ["", "minio:9000", "ftp://h/b", "https://", "http://h:x/b", "http://["]
)
def test_not_an_endpoint(url: str) -> None:
    with pytest.raises(ConfigurationError, match="must start with https:// or http://"):
        find_bucket(url, "bkt")


@pytest.mark.parametrize(
    "url", [f"https://other.{AWS}", f"https://{AWS}/other", f"https://bkt.{AWS}/folder"]
)
def test_contradicting_buckets(url: str) -> None:
    with pytest.raises(ConfigurationError, match="make the two agree"):
        find_bucket(url, "bkt")


# --- which one ------------------------------------------------------------------------------------


def test_open_storage(
    bucket_settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    complete = settings(**bucket_settings)
    assert isinstance(open_storage(complete), S3Storage)
    assert isinstance(open_storage(complete.model_copy(update={"storage": "s3"})), S3Storage)
    assert isinstance(open_storage(complete.model_copy(update={"storage": "local"})), LocalStorage)
    assert isinstance(open_storage(Settings(output_dir=tmp_path / "out")), LocalStorage)
    assert caplog.text == ""
    assert isinstance(open_storage(settings()), LocalStorage)
    assert "only BUCKET_ACCESS_KEY_ID, BUCKET_SECRET_ACCESS_KEY" in caplog.text
    assert not (tmp_path / "out").exists()


def test_importing_is_cheap() -> None:
    code = "import sys, wan_engine.storage; sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_s3_without_its_variables() -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_storage(Settings(storage="s3", bucket_access_key_id="k"))
    assert "needs BUCKET_ENDPOINT_URL and BUCKET_SECRET_ACCESS_KEY:" in str(caught.value)


def test_settings_that_boto_refuses() -> None:
    with pytest.raises(ConfigurationError, match="The bucket's settings are wrong"):
        S3Storage(settings(bucket_endpoint_url="https://a b/bkt"))


def test_a_silent_store_does_not_hold_a_cancelled_job(
    clip: Path, bucket_settings: dict[str, Any]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        store = S3Storage(settings(**{**bucket_settings, "bucket_endpoint_url": address}))
        control = Control()
        Timer(0.3, control.cancel).start()
        started = time.monotonic()
        with pytest.raises(Cancelled):
            store.put(clip, "silent", {}, control)
        assert time.monotonic() - started < 7  # five of them are for the store to forget the clip
