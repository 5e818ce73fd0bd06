"""A bucket that a job brings in `s3Config`, as Runpod documents it. Its address is a stranger's."""

from __future__ import annotations

import logging
import resource
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.services.faults import Fault, FaultProxy
from tests.hostile import listening, private_urls
from tests.storage.stores import BUCKET, MIB, QUICK, RECORD, eventually, fetch, make_clip, settings
from wan_engine.control import Control
from wan_engine.errors import Cancelled, EngineError, InvalidRequest, StorageFailed
from wan_engine.media.fetch import is_public_address
from wan_engine.settings import Settings
from wan_engine.storage import given_bucket, open_given, unknown_fields

ID, SECRET = "AKIDOFTHECALLER", "the/callers+own/secret"
OWN = "callers-bucket"


@pytest.fixture
def own(s3: Any) -> Iterator[str]:
    """A second bucket in the same store."""
    s3.create_bucket(Bucket=OWN)
    yield OWN
    for name in names(s3):
        s3.delete_object(Bucket=OWN, Key=name)
    s3.delete_bucket(Bucket=OWN)


def names(s3: Any, bucket: str = OWN) -> list[str]:
    items = s3.list_objects_v2(Bucket=bucket).get("Contents", [])
    return [str(item["Key"]) for item in items]


def config(url: str, **more: Any) -> dict[str, Any]:
    keys = {"accessId": ID, "accessSecret": SECRET}
    return {**keys, "bucketName": OWN, "endpointUrl": url, **more}


def opened(value: object, *, private: bool = True, control: Control | None = None) -> Any:
    """Opened by a worker that has a bucket, a prefix and a public address of its own."""
    operator = settings(
        bucket_endpoint_url="http://operator.example/clips",
        s3_prefix="operators",
        public_base_url="https://pub.example.com",
        s3_region="eu-north-1",
        allow_private_urls=private,
    )
    return open_given(value, operator, control or Control(), is_public_address, QUICK)


def refusal(value: object, **options: Any) -> str:
    with pytest.raises(InvalidRequest) as caught, opened(value, **options):
        pytest.fail("it was taken")
    sentence = str(caught.value)
    assert sentence.startswith('field "s3Config') and "\n" not in sentence and len(sentence) < 300
    assert ID not in sentence and SECRET not in sentence and "127.0.0.1" not in sentence
    return sentence


def failure(url: str) -> str:
    with pytest.raises(EngineError) as caught, opened(config(url)):
        pytest.fail("it was taken")
    return str(caught.value)


# --- clips in the job's bucket --------------------------------------------------------------------


@pytest.mark.parametrize("size", [3000, 17 * MIB], ids=["whole", "in parts"])
def test_only_the_clip_is_in_the_jobs_own_bucket(
    s3: Any, endpoint: str, own: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    caplog.set_level(logging.INFO)
    clip = make_clip(tmp_path, size)
    with opened(config(f"{endpoint}/")) as storage:
        assert storage.finished("job-1", Control()) is None
        url = storage.put(clip, "job-1", RECORD, Control())
    assert url.startswith(f"{endpoint}/{OWN}/20") and "Expires=604800" in url
    assert fetch(url) == clip.read_bytes()
    (name,) = names(s3)
    assert name.endswith(".mp4") and "/job-1/" in name
    assert names(s3, BUCKET) == []
    ours = [record.getMessage() for record in caplog.records if record.name != "werkzeug"]
    assert not [line for line in ours if SECRET in line or ID in line]


def test_the_endpoint_may_name_the_bucket(s3: Any, endpoint: str, own: str, clip: Path) -> None:
    value = config(f"{endpoint}/{OWN}", bucketName=None)
    with opened(value) as storage:
        storage.put(clip, "job-1", RECORD, Control())
    assert len(names(s3)) == 1


def test_a_cancelled_job_leaves_nothing(s3: Any, proxy: FaultProxy, own: str, clip: Path) -> None:
    control = Control()

    def is_clip(request: Any) -> bool:
        return request.method == "PUT" and ".mp4" in request.target

    with pytest.raises(Cancelled), opened(config(proxy.url), control=control) as storage:
        proxy.inject(Fault("reset-answer", when=is_clip, then=control.cancel))
        storage.put(clip, "job-1", RECORD, control)
    assert eventually(lambda: names(s3) == [])


@pytest.mark.parametrize("value", [None, {}, {"accessId": "", "endpointUrl": None}])
def test_a_job_without_a_bucket_uses_the_operators(value: object) -> None:
    with opened(value) as storage:
        assert storage is None


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"accessId": None}, 'field "s3Config.accessId" is required'),
        ({"accessSecret": ""}, 'field "s3Config.accessSecret" is required'),
        ({"endpointUrl": None}, 'field "s3Config.endpointUrl" is required'),
        ({"accessSecret": 5}, 'field "s3Config.accessSecret" must be a string of printable'),
        ({"accessSecret": "a\nb"}, 'field "s3Config.accessSecret" must be a string of printable'),
        ({"accessId": "a b"}, 'field "s3Config.accessId" must be a string of printable'),
        ({"accessId": "é"}, 'field "s3Config.accessId" must be a string of printable'),
        ({"bucketName": ["b"]}, 'field "s3Config.bucketName" must be a string of printable'),
        ({"endpointUrl": "x" * 5000}, 'field "s3Config.endpointUrl" must be a string of printable'),
        ({"endpointUrl": "store.example.com"}, 'field "s3Config.endpointUrl" must be the http or'),
        ({"endpointUrl": "ftp://store.example"}, 'field "s3Config.endpointUrl" must be the http'),
        ({"endpointUrl": "file:///etc/passwd"}, 'field "s3Config.endpointUrl" must be the http'),
        ({"endpointUrl": "https://s3.amazonaws.com/other"}, 'field "s3Config.endpointUrl" must be'),
        (
            {"endpointUrl": "https://s3.amazonaws.com", "bucketName": None},
            'field "s3Config.endpointUrl" must be the http or https URL of an object store',
        ),
        (
            {"endpointUrl": "https://s3api-eu-ro-1.runpod.io"},
            'field "s3Config.endpointUrl" must be a store that serves signed links',
        ),
        (
            {"region": "eu-west-1"},
            'field "s3Config" may contain accessId, accessSecret, bucketName',
        ),
    ],
)
def test_a_wrong_shape_is_a_sentence(change: dict[str, Any], sentence: str) -> None:
    assert refusal(config("https://s3.amazonaws.com", **change)).startswith(sentence)


@pytest.mark.parametrize("value", ["x", 5, [], True, False, 0])
def test_a_value_that_is_not_an_object_is_a_sentence(value: object) -> None:
    assert refusal(value) == 'field "s3Config" must be an object'


@pytest.mark.parametrize("name", ["s3_config", "S3Config", "s3config", "s3-config"])
def test_misspelled_keys_are_not_ignored(name: str) -> None:
    with pytest.raises(InvalidRequest, match='field "s3Config" must be spelled like this'):
        unknown_fields({"id": "j", "input": {}, name: {}})
    with pytest.raises(InvalidRequest, match='field "s3Config" must be next to "input", not in it'):
        unknown_fields({"id": "j", "input": {name: {}}})


def test_unknown_names_are_logged() -> None:
    envelope = {"id": "j", "input": {}, "webhook": "x", "policy": {}, "s3Config": {}, "a\nb": 1}
    assert unknown_fields(envelope) == ["a?b"]
    assert len(unknown_fields({f"n{number}": 1 for number in range(100)})) == 20
    assert given_bucket(envelope["s3Config"]) is None


# --- check before the render ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["PUT", "GET", "POST"])
def test_a_bucket_that_refuses_is_the_callers_fault(
    proxy: FaultProxy, own: str, s3: Any, method: str
) -> None:
    def asked(request: Any) -> bool:
        return bool(request.method == method)

    proxy.inject(Fault("answer", times=100, when=asked, status=403, code="AccessDenied"))
    sentence = refusal(config(proxy.url))
    refused = 'field "s3Config": the bucket cannot be used: the object store refused it'
    assert sentence == f"{refused} (AccessDenied)" or method == "GET"
    assert names(s3) == []


def test_a_bucket_whose_links_do_not_work_is_refused(proxy: FaultProxy, own: str, s3: Any) -> None:
    def is_link(request: Any) -> bool:
        return "X-Amz-Signature" in request.target

    proxy.inject(Fault("answer", times=100, when=is_link, status=403, code="AccessDenied"))
    assert "signed links do not return the stored object" in refusal(config(proxy.url))


def test_a_missing_bucket_is_refused(endpoint: str) -> None:
    assert refusal(config(endpoint, bucketName="absent")).endswith("refused it (NoSuchBucket)")


def test_an_unreachable_bucket_may_be_back_later(proxy: FaultProxy, own: str) -> None:
    proxy.inject(Fault("answer", times=100, status=503, code="SlowDown"))
    with pytest.raises(StorageFailed) as caught, opened(config(proxy.url)):
        pytest.fail("it was taken")
    assert str(caught.value) == (
        "s3Config: the bucket cannot be used: the object store is not available (SlowDown)"
    )


# --- untrusted addresses --------------------------------------------------------------------------


def test_a_private_address_is_not_contacted() -> None:
    with listening() as listener:
        for url in private_urls(listener.port):
            if url.startswith("http"):
                with pytest.raises(EngineError) as caught, opened(config(url), private=False):
                    pytest.fail(url)
                sentence = str(caught.value)
                refused = sentence.startswith('field "s3Config')
                assert refused or sentence.endswith("the object store is not reachable"), url
                assert str(listener.port) not in sentence
        assert listener.visits == 0


def test_an_address_that_changes_after_the_check_is_not_contacted(
    s3: Any, proxy: FaultProxy, own: str, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy closes each connection, so the name is resolved for each request."""
    real, addresses = socket.getaddrinfo, ["127.0.0.1"]

    def look_up(host: str, *more: Any, **named: Any) -> Any:
        return real(addresses[-1] if host == "localhost" else host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    url = proxy.url.replace("127.0.0.1", "localhost")
    with open_given(config(url), Settings(), Control(), "127.0.0.1".__eq__, QUICK) as storage:
        assert storage is not None
        storage.put(clip, "job-1", RECORD, Control())
        asked = len(proxy.seen)
        addresses.append("127.0.0.2")  # nothing answers there
        with pytest.raises(InvalidRequest, match="the address is not public"):
            storage.put(clip, "job-2", RECORD, Control())
    assert len(names(s3)) == 1 and len(proxy.seen) == asked


@contextmanager
def answering(answer: bytes, repeat: bytes = b"") -> Iterator[str]:
    """A store that gives this answer to every request, and then sends `repeat` for ever."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            try:
                self.wfile.write(answer)
                while repeat:
                    self.wfile.write(repeat)
            except OSError:
                return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=partial(server.serve_forever, 0.01)).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_redirect_is_not_followed() -> None:
    with listening() as listener:
        target = f"http://127.0.0.1:{listener.port}/"
        head = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n"
        with answering(head.encode()) as url:
            failure(url)
        assert listener.visits == 0


def test_an_endless_answer_is_not_kept_in_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    head = b"HTTP/1.1 200 OK\r\nETag: x\r\nContent-Type: application/xml\r\n\r\n"
    with answering(head, b" " * MIB) as url, pytest.raises(EngineError), opened(config(url)):
        pytest.fail("it was taken")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # kB


def test_the_workers_own_keys_are_never_used(
    endpoint: str, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDOFTHEOPERATOR")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "operator")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "operator")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with opened(config(endpoint)) as storage:
        assert f"Credential={ID}%2F" in storage._url("k") and "Token" not in storage._url("k")
