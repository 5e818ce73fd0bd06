"""Behaviour of buckets only: keys, links, and messages for a store's answers."""

from __future__ import annotations

import logging
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread, Timer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.storage.stores import (
    BUCKET,
    MIB,
    ONCE,
    PREFIX,
    RECORD,
    SECRET_KEY,
    SLOW,
    StopAt,
    fetch,
    make_clip,
    s3_store,
    settings,
)
from wan_engine.control import Control
from wan_engine.errors import Cancelled, ConfigurationError, StorageFailed
from wan_engine.storage import S3Storage


def test_urls_are_signed(s3: Any, bucket_settings: dict[str, Any], clip: Path) -> None:
    store = s3_store(s3, bucket_settings)
    url = store.storage.put(clip, "job-1", RECORD, Control())
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.headers["Content-Type"] == "video/mp4"
        assert answer.read() == clip.read_bytes()
    query = parse_qs(urlsplit(url).query)
    assert query["X-Amz-Expires"] == ["604800"]
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    # Google and R2 do not know this parameter, which boto adds to validate.
    assert not [name for name in query if "checksum" in name.lower()]
    today = time.strftime("%Y/%m/%d", time.gmtime())
    [name] = store.clips()
    assert name.startswith(f"{PREFIX}/{today}/job-1/")
    assert store.records() == [f"{PREFIX}/jobs/job-1.json"]


def test_clips_may_have_no_prefix(s3: Any, bucket_settings: dict[str, Any], clip: Path) -> None:
    store = s3_store(s3, {**bucket_settings, "s3_prefix": ""})
    store.storage.put(clip, "job-1", RECORD, Control())
    assert store.records() == ["jobs/job-1.json"]
    assert store.clips()[0].startswith("20")


def test_public_urls_are_not_signed(
    s3: Any, endpoint: str, bucket_settings: dict[str, Any], clip: Path
) -> None:
    s3.put_bucket_acl(Bucket=BUCKET, ACL="public-read")
    base = f"{endpoint}/{BUCKET}"
    store = s3_store(s3, {**bucket_settings, "public_base_url": f"{base}/"})
    url = store.storage.put(clip, "job-1", RECORD, Control())
    assert url.startswith(f"{base}/wan%20clips/v1/20")
    assert "?" not in url
    found = store.storage.finished("job-1", Control())
    assert found is not None
    assert found[0] == url
    assert store.storage.check().endswith(f"links below {base}")


def test_large_clips_are_sent_in_parts(
    s3: Any, bucket_settings: dict[str, Any], tmp_path: Path
) -> None:
    store = s3_store(s3, bucket_settings)
    clip = make_clip(tmp_path, 17 * MIB)
    url = store.storage.put(clip, "job-1", RECORD, Control())
    assert fetch(url) == clip.read_bytes()
    [name] = store.clips()
    head = s3.head_object(Bucket=BUCKET, Key=name)
    assert head["ETag"].endswith('-2"')
    assert head["ContentType"] == "video/mp4"


@pytest.mark.parametrize("checkpoint", [2, 40, 68])
def test_a_cancelled_multipart_upload_leaves_no_parts(
    s3: Any, bucket_settings: dict[str, Any], tmp_path: Path, checkpoint: int
) -> None:
    store = s3_store(s3, bucket_settings)
    started = time.monotonic()
    with pytest.raises(Cancelled):
        store.storage.put(make_clip(tmp_path, 17 * MIB), "job-1", RECORD, StopAt(checkpoint))
    assert time.monotonic() - started < 5
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=BUCKET)
    assert store.contents() == {}


def test_a_refused_connection_is_a_failure(
    bucket_settings: dict[str, Any], clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = S3Storage(
        settings(**{**bucket_settings, "bucket_endpoint_url": "http://127.0.0.1:1"}),
        limits=ONCE,
    )
    started = time.monotonic()
    with pytest.raises(StorageFailed) as caught:
        storage.put(clip, "job-1", RECORD, Control())
    reason = "the object store is not reachable"
    assert str(caught.value) == f"The finished clip could not be stored: {reason}"
    assert "correct BUCKET_ENDPOINT_URL" in caplog.text
    assert storage.finished("job-1", Control()) is None
    with pytest.raises(ConfigurationError, match="is not reachable; correct BUCKET_ENDPOINT_URL"):
        storage.check()
    assert time.monotonic() - started < 5


def test_a_cancelled_job_is_cancelled_whatever_the_store_answers(
    bucket_settings: dict[str, Any], clip: Path
) -> None:
    values = {**bucket_settings, "bucket_endpoint_url": "http://127.0.0.1:1"}
    with pytest.raises(Cancelled):
        S3Storage(settings(**values)).put(clip, "job-1", RECORD, StopAt(2))


def test_a_wrong_bucket_is_reported(
    bucket_settings: dict[str, Any], clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = S3Storage(settings(**{**bucket_settings, "bucket_name": "absent-bucket"}))
    with pytest.raises(StorageFailed) as caught:
        storage.put(clip, "job-1", RECORD, Control())
    assert str(caught.value) == (
        "The finished clip could not be stored: the object store refused it"
    )
    assert "create it or correct BUCKET_NAME" in caplog.text
    assert storage.finished("job-1", Control()) is None
    with pytest.raises(ConfigurationError, match="create it or correct BUCKET_NAME"):
        storage.check()


class Answering(ThreadingHTTPServer):
    """An object store that gives every request the same answer, and records the requests."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status = status
        text = f"<Error><Code>{code}</Code><Message>m</Message></Error>" if code else ""
        self.body = text.encode()
        self.seen: list[tuple[str, dict[str, str]]] = []


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # otherwise botocore waits a second for "100 Continue"
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
        return server, S3Storage(settings(bucket_endpoint_url=url, bucket_name=BUCKET), limits=ONCE)

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
def test_each_answer_of_the_store_has_its_message(
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
    assert storage.finished("job-1", Control()) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    with pytest.raises(ConfigurationError, match="The bucket cannot be used: "):
        storage.check()


def test_checksums_that_other_stores_refuse_are_not_sent(
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


def test_a_cancel_does_not_cause_a_retry(
    answering: Callable[[int, str], tuple[Answering, S3Storage]], tmp_path: Path
) -> None:
    server, _ = answering(200, "")
    url = f"http://127.0.0.1:{server.server_port}"
    storage = S3Storage(settings(bucket_endpoint_url=url, bucket_name=BUCKET))
    with pytest.raises(Cancelled):
        storage.put(make_clip(tmp_path, 4 * MIB), "job-1", RECORD, StopAt(4))
    assert [method for method, _ in server.seen] == ["PUT", "DELETE"]


def test_a_silent_store_does_not_hold_a_cancelled_job(
    clip: Path, bucket_settings: dict[str, Any]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        values = settings(**{**bucket_settings, "bucket_endpoint_url": address})
        store = S3Storage(values, limits=SLOW)
        control = Control()
        Timer(0.3, control.cancel).start()
        started = time.monotonic()
        with pytest.raises(Cancelled):
            store.put(clip, "silent", {}, control)
        assert time.monotonic() - started < 0.3 + 1


@pytest.mark.parametrize(
    ("values", "warned"),
    [
        ({"bucket_access_key_id": "ASIAEXAMPLE"}, True),
        ({"bucket_access_key_id": "AKIAEXAMPLE"}, False),
        ({"bucket_access_key_id": "ASIAEXAMPLE", "public_base_url": "https://c.example"}, False),
    ],
)
def test_session_keys_are_used(
    caplog: pytest.LogCaptureFixture, values: dict[str, Any], warned: bool
) -> None:
    S3Storage(settings(bucket_endpoint_url="https://s3.amazonaws.com/bkt", **values))
    assert ("signed links end with its session" in caplog.text) == warned
    assert "ASIAEXAMPLE" not in caplog.text
