"""The checks of a bucket or a folder before the first job, and which keys may start a worker."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from benchmarks.services.faults import Fault, FaultProxy, Request
from tests.storage.stores import (
    ACCESS_KEY,
    BUCKET,
    PREFIX,
    QUICK,
    SECRET_KEY,
    s3_store,
    settings,
)
from wan_engine.errors import ConfigurationError, Warned
from wan_engine.settings import Settings
from wan_engine.storage import LocalStorage, S3Storage, SpooledStorage

When = Callable[[Request], bool]


def is_put(request: Request) -> bool:
    return request.method == "PUT"


def is_read(request: Request) -> bool:
    return request.method == "GET" and "X-Amz-Signature" not in request.target


def is_link(request: Request) -> bool:
    return request.method == "GET" and "X-Amz-Signature" in request.target


def is_begin_of_parts(request: Request) -> bool:
    return request.method == "POST" and "uploads" in request.target


def is_abort(request: Request) -> bool:
    return request.method == "DELETE" and "uploadId" in request.target


def is_delete(request: Request) -> bool:
    return request.method == "DELETE" and "uploadId" not in request.target


def is_look(request: Request) -> bool:
    return request.method == "HEAD"


def denied(proxy: FaultProxy, when: When, code: str = "AccessDenied", status: int = 403) -> None:
    proxy.inject(Fault("answer", times=1000, when=when, status=status, code=code))


def names(s3: Any) -> list[str]:
    items = s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])
    return [str(item["Key"]) for item in items]


def test_one_object_goes_the_way_of_a_clip_and_nothing_is_left(
    proxy: FaultProxy, behind: Settings, s3: Any
) -> None:
    assert S3Storage(behind, limits=QUICK).check().endswith("links signed for 7 days")
    asked = (is_put, is_read, is_link, is_begin_of_parts, is_abort, is_delete)
    assert all(any(when(request) for request in proxy.seen) for when in asked)
    keys = {request.target.partition("?")[0] for request in proxy.seen if not is_look(request)}
    (key,) = keys
    assert key.startswith(f"/{BUCKET}/{PREFIX.replace(' ', '%20')}/checks/")
    assert names(s3) == [] and "Uploads" not in s3.list_multipart_uploads(Bucket=BUCKET)


@pytest.mark.parametrize(
    ("when", "why"),
    [
        (is_put, "s3:PutObject, s3:GetObject"),
        (is_read, "s3:PutObject, s3:GetObject"),
        (is_link, "the signed link of an object was answered with 403, so callers could not"),
        (is_begin_of_parts, "CreateMultipartUpload"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_key_that_lacks_a_needed_right_is_refused_at_start(
    proxy: FaultProxy, behind: Settings, s3: Any, when: When, why: str
) -> None:
    denied(proxy, when)
    with pytest.raises(ConfigurationError) as caught:
        S3Storage(behind, limits=QUICK).check()
    sentence = str(caught.value)
    assert sentence.startswith("The bucket cannot be used: ") and why in sentence
    assert "\n" not in sentence and "Signature=" not in sentence
    assert SECRET_KEY not in sentence and ACCESS_KEY not in sentence
    assert names(s3) == []


@pytest.mark.parametrize(
    ("when", "caveat"),
    [
        (is_delete, "may not delete (s3:DeleteObject)"),
        (is_abort, "may not abort an upload (s3:AbortMultipartUpload)"),
        (is_look, "may not list (s3:ListBucket)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_key_that_lacks_an_optional_right_is_a_warning(
    proxy: FaultProxy,
    behind: Settings,
    s3: Any,
    when: When,
    caveat: str,
) -> None:
    denied(proxy, when)
    line = S3Storage(behind, limits=QUICK).check()
    assert f"links signed for 7 days; but the key {caveat}" in line
    assert isinstance(line, Warned)
    assert all(name in line for name in names(s3)), "what is left is named"
    assert len(names(s3)) == (when is is_delete)


def test_a_warning_stays_a_warning_with_a_spool(
    proxy: FaultProxy, behind: Settings, tmp_path: Path
) -> None:
    storage = SpooledStorage(S3Storage(behind, limits=QUICK), tmp_path / "spool")
    assert not isinstance(storage.check(), Warned)
    denied(proxy, is_delete)
    assert isinstance(storage.check(), Warned)


def test_an_object_that_a_refused_key_leaves_is_named(
    proxy: FaultProxy, behind: Settings, s3: Any
) -> None:
    denied(proxy, is_link)
    denied(proxy, is_delete)
    with pytest.raises(ConfigurationError) as caught:
        S3Storage(behind, limits=QUICK).check()
    (left,) = names(s3)
    assert f"{left} is left" in str(caught.value)


@pytest.mark.parametrize("when", [is_put, is_read, is_link, is_begin_of_parts, is_delete])
def test_a_store_that_is_busy_for_a_moment_is_asked_again(
    proxy: FaultProxy, behind: Settings, s3: Any, when: When
) -> None:
    proxy.inject(Fault("answer", times=2, when=when, status=503, code="SlowDown"))
    assert "; but" not in S3Storage(behind, limits=QUICK).check()
    assert names(s3) == []


def test_a_lost_answer_leaves_nothing(proxy: FaultProxy, behind: Settings, s3: Any) -> None:
    proxy.inject(Fault("reset-answer", times=1000, when=is_put))
    with pytest.raises(ConfigurationError, match="The bucket cannot be used"):
        S3Storage(behind, limits=QUICK).check()
    assert names(s3) == []


def test_a_link_that_cannot_be_reached_from_here_is_a_warning(behind: Settings) -> None:
    def away(url: str) -> tuple[int, bytes]:
        raise TimeoutError

    storage = S3Storage(behind, limits=QUICK)
    storage._get = away
    assert "could not be fetched from here (TimeoutError)" in storage.check()


def test_the_check_of_a_silent_store_ends(proxy: FaultProxy, behind: Settings) -> None:
    proxy.inject(Fault("stall", times=1000, when=is_read))
    storage = S3Storage(behind, limits=replace(QUICK, find_seconds=0.5))
    with pytest.raises(ConfigurationError, match=r"no answer for 0\.5 seconds"):
        storage.check()


def test_a_public_address_is_tried_and_a_failure_is_a_warning(
    s3: Any, endpoint: str, bucket_settings: dict[str, Any]
) -> None:
    base = f"{endpoint}/{BUCKET}"
    s3.put_bucket_acl(Bucket=BUCKET, ACL="public-read")
    store = s3_store(s3, {**bucket_settings, "public_base_url": base})
    assert store.storage.check().endswith(f"links below {base}")
    store = s3_store(s3, {**bucket_settings, "public_base_url": f"{endpoint}/other"})
    line = store.storage.check()
    assert f"{endpoint}/other/wan%20clips/v1/checks/" in line and "was answered with 404" in line
    assert "correct WAN_PUBLIC_BASE_URL" in line and isinstance(line, Warned)


def test_a_key_that_may_only_write_is_enough_for_a_public_bucket(
    proxy: FaultProxy, s3: Any, endpoint: str, bucket_settings: dict[str, Any]
) -> None:
    s3.put_bucket_acl(Bucket=BUCKET, ACL="public-read")
    denied(proxy, is_read)
    urls = {"bucket_endpoint_url": proxy.url, "public_base_url": f"{endpoint}/{BUCKET}"}
    line = S3Storage(settings(**{**bucket_settings, **urls}), limits=QUICK).check()
    assert line.endswith("a job that is sent again is rendered again (AccessDenied)")
    assert line.count("; but ") == 1


def test_a_header_that_cannot_be_sent_is_not_shown(
    bucket_settings: dict[str, Any],
) -> None:
    key = {"bucket_access_key_id": SecretStr(f"{ACCESS_KEY}\n")}
    unchecked = settings(**bucket_settings).model_copy(update=key)
    with pytest.raises(ConfigurationError) as caught:
        S3Storage(unchecked, limits=QUICK).check()
    assert "ValueError" in str(caught.value)
    assert ACCESS_KEY not in str(caught.value) and "Signature" not in str(caught.value)


# --- folders --------------------------------------------------------------------------------------


def opened(kind: str, folder: Path) -> LocalStorage | SpooledStorage:
    if kind == "WAN_OUTPUT_DIR":
        return LocalStorage(folder)
    return SpooledStorage(LocalStorage(folder.parent / "store"), folder)


@pytest.mark.parametrize("kind", ["WAN_OUTPUT_DIR", "WAN_SPOOL_DIR"])
def test_a_folder_without_room_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    real = shutil.disk_usage

    def usage(folder: Path) -> object:
        found = real(folder)
        return found._replace(free=1000) if Path(folder).name == "full" else found

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(ConfigurationError, match=f"less than 256 MB are free.*set {kind} to"):
        opened(kind, tmp_path / "full").check()
    opened(kind, tmp_path / "roomy").check()


@pytest.mark.parametrize(
    ("kind", "inner"),
    [("WAN_OUTPUT_DIR", ".jobs"), ("WAN_SPOOL_DIR", "starts")],
)
def test_a_subfolder_that_cannot_be_written_is_refused(
    tmp_path: Path, kind: str, inner: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / inner).touch()
    with pytest.raises(ConfigurationError, match=f"set {kind} to"):
        opened(kind, tmp_path / "folder").check()


@pytest.mark.parametrize("kind", ["WAN_OUTPUT_DIR", "WAN_SPOOL_DIR"])
def test_a_folder_that_loses_written_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    real = os.fsync

    def full(descriptor: int) -> None:
        real(descriptor)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigurationError, match=f"set {kind} to"):
        opened(kind, tmp_path / "folder").check()
    monkeypatch.undo()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
