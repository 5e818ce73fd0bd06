"""Opens the bucket that a job brings along: Runpod's `s3Config` next to the `input` of a job.

docs.runpod.io, serverless/endpoints/send-requests: `accessId`, `accessSecret`, `bucketName` and
`endpointUrl`, "passed directly to your worker but not included in responses". They stay in memory
during the job, and are stored nowhere.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import SecretStr

from wan_engine.control import Control
from wan_engine.errors import ConfigurationError, InvalidRequest, StorageFailed
from wan_engine.settings import Settings
from wan_engine.storage.bucket import find_bucket, serves_no_signed_links
from wan_engine.storage.bucket_errors import BucketFailed
from wan_engine.storage.pinned import PinnedSession
from wan_engine.storage.probe import Unusable
from wan_engine.storage.retries import RetryLimits
from wan_engine.storage.s3 import S3Storage

FIELD = "s3Config"
_FIELDS = {
    "endpointUrl": "bucket_endpoint_url",
    "accessId": "bucket_access_key_id",
    "accessSecret": "bucket_secret_access_key",
    "bucketName": "bucket_name",
}
_KEYS = ("bucket_access_key_id", "bucket_secret_access_key")
_KNOWN = ("id", "input", "webhook", "webhookV2", "policy", FIELD)
_LONGEST = 2048
_WORD = re.compile(r"[!-~]+")  # printable ASCII without blanks
_UNDO_SECONDS = 10.0


def unknown_fields(envelope: Mapping[str, Any]) -> list[str]:
    """The names beside `input` that are unknown here, ready to be logged.

    Raises `InvalidRequest` for an `s3Config` that is spelled differently or is inside `input`,
    where the SDK puts it if there is no `input`. The clip would be stored elsewhere.
    """
    inner = envelope.get("input")
    if isinstance(inner, dict) and any(_means_bucket(name) for name in inner):
        raise InvalidRequest(f'field "{FIELD}" must be next to "input", not in it')
    names = [str(name) for name in envelope if name not in _KNOWN]
    for name in names:
        if _means_bucket(name):
            raise InvalidRequest(f'field "{FIELD}" must be spelled like this, got {name[:40]!r}')
    return [re.sub(r"\W", "?", name)[:40] for name in names[:20]]


def _means_bucket(name: object) -> bool:
    return re.sub(r"[^a-z0-9]", "", str(name).lower()) in ("s3config", "s3configuration")


def given_bucket(value: object) -> dict[str, str] | None:
    """The settings for an `s3Config`; None if it is missing or empty.

    Raises `InvalidRequest`, whose sentence contains none of the values.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidRequest(f'field "{FIELD}" must be an object')
    given = {name: found for name, found in value.items() if found not in (None, "")}
    if not given:
        return None
    for name, found in given.items():
        if name not in _FIELDS:
            known = ", ".join(sorted(_FIELDS))
            raise InvalidRequest(f'field "{FIELD}" may contain {known}, got {str(name)[:40]!r}')
        if not isinstance(found, str) or len(found) > _LONGEST or not _WORD.fullmatch(found):
            raise InvalidRequest(
                f'field "{FIELD}.{name}" must be a string of printable ASCII without blanks'
            )
    for name in ("endpointUrl", "accessId", "accessSecret"):
        if name not in given:
            # Without both keys, boto would search for the worker's own.
            raise InvalidRequest(f'field "{FIELD}.{name}" is required')
    bucket = {_FIELDS[name]: found for name, found in given.items()}
    _check_address(bucket["bucket_endpoint_url"], bucket.get("bucket_name"))
    return bucket


def _check_address(url: str, name: str | None) -> None:
    try:
        bucket = find_bucket(url, name)
    except ConfigurationError:
        raise InvalidRequest(
            f'field "{FIELD}.endpointUrl" must be the http or https URL of an object store, and '
            f'name the same bucket as "{FIELD}.bucketName", or none'
        ) from None
    if serves_no_signed_links(bucket):
        raise InvalidRequest(
            f'field "{FIELD}.endpointUrl" must be a store that serves signed links, which the S3 '
            "API of a Runpod network volume does not"
        )


@contextmanager
def open_given(
    value: object,
    settings: Settings,
    control: Control,
    allowed: Callable[[str], bool],
    limits: RetryLimits | None = None,
) -> Iterator[S3Storage | None]:
    """The storage for a job with this `s3Config`, or None if it has none. `allowed` decides which
    addresses it may have.

    It spools nothing and keeps no record: a job that is sent again is rendered again. Raises
    `InvalidRequest` and `StorageFailed` before anything is rendered, and what `control` raises.
    """
    bucket = given_bucket(value)
    if bucket is None:
        yield None
        return
    limits = limits or RetryLimits()
    if settings.allow_private_urls:
        allowed = _any
    session = PinnedSession(allowed, (limits.connect_seconds, limits.read_seconds))
    try:
        storage = _opened(_own(settings, bucket), limits, session)
        _require_usable(storage, control)
        yield storage
    finally:
        # The time limit for removing the clip of a cancelled job.
        end = threading.Timer(_UNDO_SECONDS, session.close)
        end.daemon = True
        end.start()


def _opened(own: Settings, limits: RetryLimits, session: PinnedSession) -> S3Storage:
    try:
        return S3Storage(own, limits=limits, session=session)
    except ConfigurationError:  # its sentence is for the operator
        raise InvalidRequest(f'field "{FIELD}" does not name a bucket') from None


def _own(settings: Settings, bucket: Mapping[str, str]) -> Settings:
    """Settings without any value of the operator's bucket."""
    fields = ("bucket_name", "s3_region", "s3_addressing", "s3_prefix", "public_base_url")
    plain = {name: Settings.model_fields[name].default for name in fields}
    keys = {name: SecretStr(bucket[name]) for name in _KEYS}
    return settings.model_copy(update={**plain, **bucket, **keys})


def _require_usable(storage: S3Storage, control: Control) -> None:
    try:
        storage.require(control)
    except BucketFailed as error:
        said = f" ({error.said})" if error.said else ""
        sentence = f"the bucket cannot be used: {error.why}{said}"
        if error.refused:
            raise InvalidRequest(f'field "{FIELD}": {sentence}') from error
        raise StorageFailed(f"{FIELD}: {sentence}") from error
    except Unusable as error:
        raise InvalidRequest(
            f'field "{FIELD}": the bucket\'s signed links do not return the stored object'
        ) from error


def _any(_address: str) -> bool:
    return True
