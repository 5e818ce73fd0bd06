"""Tries everything that a job needs from a bucket with one small object, before the first job.

A key may have only some of the rights. Rights that a clip or its link needs are required; missing
others become a caveat.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any
from uuid import uuid4

from wan_engine.control import Control
from wan_engine.errors import EngineError
from wan_engine.storage.bucket_errors import BucketFailed, boto_errors
from wan_engine.storage.retries import Ask, RetryLimits, beside

Get = Callable[[str], tuple[int, bytes]]
"""Fetches a link as a client does. Returns the status and the beginning of the body. Raises
`OSError`."""

_ATTEMPTS = 3  # some stores show a new object with a delay
_MOST_BYTES = 1024
_NOT_FETCHED = "could not be fetched from here"
_GET_SECONDS = (5.0, 10.0)  # to connect, and between two pieces


class Unusable(EngineError):
    """The store accepts clips, but callers could not fetch them."""


def get(url: str) -> tuple[int, bytes]:
    """Fetch a URL as clients do, without a key. Raises `OSError`, as all errors of requests are."""
    import requests

    def no_auth(request: Any) -> Any:  # otherwise requests takes one from .netrc
        return request

    with closing(requests.get(url, timeout=_GET_SECONDS, stream=True, auth=no_auth)) as answer:
        return answer.status_code, b"".join(islice(answer.iter_content(_MOST_BYTES), 4))


class Probe:
    """One object below `prefix` that is written, read, linked to and deleted.

    `caveats` are sentences for the operator about missing optional rights. `link` makes the URL
    that a client would get for a key; `public` says that it is not signed.
    """

    def __init__(
        self, client: Any, bucket: str, prefix: str, link: Callable[[str], str], *, public: bool
    ) -> None:
        name = uuid4().hex
        self.caveats: list[str] = []
        self._client = client
        self._at = {"Bucket": bucket, "Key": f"{prefix}checks/{name}.txt"}
        self._body = f"wan_engine check {name}\n".encode()
        self._link = link
        self._public = public
        self._written = False
        self._backoff_seconds = 0.0

    def run(self, get: Get, limits: RetryLimits, control: Control) -> None:
        """Try everything. Raises `BucketFailed` if the store does not answer or refuses a clip,
        `Unusable` if a client could not fetch it, and `Cancelled` and `DeadlineExceeded` of
        `control`."""
        self._backoff_seconds = limits.backoff_seconds
        call = partial(self._look, get)
        # In the end, any object that may have been written is removed.
        with boto_errors():  # translates the timeout, too
            beside(call, control, limits.find_seconds, self._delete)

    def _look(self, get: Get, ask: Ask) -> None:
        try:
            self._write()
            ask()
            self._read(ask)
            self._fetch(get, ask)
            self._begin_parts()
            ask()
            self._list()
        finally:
            self._delete()

    def _write(self) -> None:
        self._written = True
        try:
            with boto_errors():
                self._client.put_object(**self._at, Body=self._body, ContentType="text/plain")
        except BucketFailed as error:
            # A lost answer may have been a success.
            self._written = error.reached and error.status == 0
            raise

    def _read(self, ask: Ask) -> None:
        """Read the object. Signed links need this right, because a signature allows only what its
        key may do."""
        try:
            found = self._patiently(ask, self._own_copy)
        except BucketFailed as error:
            if not self._public:
                raise
            self._warn("may not read: a job that is sent again is rendered again", error)
            return
        if found != self._body:
            raise Unusable("it returns other bytes than were written")

    def _own_copy(self) -> bytes:
        with boto_errors(), closing(self._client.get_object(**self._at)["Body"]) as body:
            return bytes(body.read(_MOST_BYTES))

    def _patiently(self, ask: Ask, look: Callable[[], bytes]) -> bytes:
        for attempt in range(1, _ATTEMPTS):
            try:
                return look()
            except BucketFailed as error:
                if not error.absent:
                    raise
            self._wait(attempt, ask)
        return look()

    def _wait(self, attempt: int, ask: Ask) -> None:
        ask()
        time.sleep(self._backoff_seconds * attempt)

    def _fetch(self, get: Get, ask: Ask) -> None:
        """Fetch the link of a clip, as its caller will. A link that cannot be reached from here may
        be reached by callers. A link that is refused here is refused to them too."""
        url = self._link(self._at["Key"])
        fault = _fetched(get, url, self._body)
        for attempt in range(1, _ATTEMPTS):
            if fault:
                self._wait(attempt, ask)
                fault = _fetched(get, url, self._body)
        if not fault:
            return
        shown = url.partition("?")[0]  # the rest of a signed link is a credential
        if self._public:
            fault += ": make the bucket public there, or correct WAN_PUBLIC_BASE_URL"
        elif not fault.startswith(_NOT_FETCHED):
            raise Unusable(
                f"the signed link of an object {fault}, so callers could not fetch their clips: "
                "set WAN_PUBLIC_BASE_URL to an address where the bucket is public, or use a store "
                "that serves signed links"
            )
        self.caveats.append(f"{shown} {fault}")

    def _begin_parts(self) -> None:
        """Begin a multipart upload, which large clips need and which a key can be forbidden
        separately."""
        with boto_errors():
            begun = self._client.create_multipart_upload(**self._at, ContentType="video/mp4")
        try:
            with boto_errors():
                self._client.abort_multipart_upload(**self._at, UploadId=begun["UploadId"])
        except BucketFailed as error:
            self._warn(
                f"may not abort an upload (s3:AbortMultipartUpload): parts of {self._at['Key']} "
                "are left, and of large clips whose jobs are cancelled",
                error,
            )

    def _list(self) -> None:
        try:
            with boto_errors():
                self._client.head_bucket(Bucket=self._at["Bucket"])
        except BucketFailed as error:
            self._warn("may not list (s3:ListBucket): each new job logs a warning", error)

    def _delete(self) -> None:
        if not self._written:
            return
        self._written = False
        try:
            with boto_errors():
                self._client.delete_object(**self._at)
        except BucketFailed as error:
            self._warn(
                f"may not delete (s3:DeleteObject): {self._at['Key']} is left, and so are the "
                "clips of jobs that are cancelled while they are stored",
                error,
            )

    def _warn(self, what: str, error: BucketFailed) -> None:
        self.caveats.append(f"the key {what} ({error.said or error.why})")


def _fetched(get: Get, url: str, expected: bytes) -> str:
    """What is wrong with a link; empty if it returns what is expected."""
    try:
        status, found = get(url)
    except (OSError, ValueError) as error:
        return f"{_NOT_FETCHED} ({type(error).__name__})"
    if status != 200:
        return f"was answered with {status}"
    return "" if found == expected else "gave other bytes than were written"
