"""Decides how long and how often to retry a store, and lets a job end while its store does not
answer.

It uses botocore's retry events, and knows nothing about buckets or clips.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from wan_engine.control import Control
from wan_engine.errors import Cancelled, DeadlineExceeded, EngineError
from wan_engine.storage.bucket_errors import BucketFailed

Answer = TypeVar("Answer")
Ask = Callable[[], None]

_POLL_SECONDS = 0.05
_UNDO_SECONDS = 0.5  # the longest wait for an undo
_LONGEST_BACKOFF_SECONDS = 8.0


@dataclass(frozen=True)
class RetryLimits:
    """The limits of retries. An unreachable store costs at most `attempts` times the time of one
    attempt, and never more than `put_seconds` for a clip and `find_seconds` for anything else."""

    attempts: int = 5
    """Attempts for one request. Each part of a multipart upload is one request."""

    connect_seconds: float = 10.0
    """Seconds to connect. urllib3 uses the same limit for a block of the body on a new
    connection."""

    read_seconds: float = 30.0
    """Seconds from the end of the request to the answer, or between two parts of the answer."""

    backoff_seconds: float = 0.5
    """The wait after the first attempt, doubled after each. Half to all of it is waited."""

    put_seconds: float = 300.0
    find_seconds: float = 60.0


# S3 answers 400 for some temporary failures. The other names are those of compatible stores.
_PASSING_CODES = (
    "RequestTimeout",
    "RequestTimeoutException",
    "PriorRequestNotComplete",
    "ConditionalRequestConflict",  # two conditional writes at the same moment
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
)
_REDIRECTS = (301, 302, 307, 308)
_PASSING_STATUS = (408, 429)
_LASTING_STATUS = (501, 505, 507)  # not implemented, wrong HTTP version, quota used up
# If the connection ends within an answer, the success lacks data that the next request needs.
_NEEDED = {
    "CreateMultipartUpload": "UploadId",
    "UploadPart": "ETag",
    "CompleteMultipartUpload": "ETag",
}


class Retries:
    """A handler of botocore's `needs-retry` event. Returns the seconds until the next attempt, or
    None.

    botocore's own standard mode retries the same failures, but it waits 50 ms at first and less
    than a second in all, and stops retrying when a client has used up its quota. It would give up
    at once on a store that restarts, and for good in a long-lived worker.
    """

    def __init__(self, limits: RetryLimits) -> None:
        self._limits = limits

    def __call__(
        self,
        attempts: int,
        operation: Any,
        response: tuple[Any, dict[str, Any]] | None,
        caught_exception: Exception | None,
        **_: object,
    ) -> float | None:
        # botocore takes an exception of our callback for a broken connection, and would retry.
        cause = getattr(caught_exception, "kwargs", {}).get("error")
        if isinstance(cause, EngineError):
            raise cause
        if response is not None and _leads_nowhere(operation.name, response[1]):
            raise BucketFailed(
                "the object store refused it",
                "the endpoint sends requests elsewhere; correct BUCKET_ENDPOINT_URL, http to https "
                "perhaps",
                status=301,
            )
        if attempts >= self._limits.attempts:
            return None
        passes = (
            _is_transport(caught_exception)
            if response is None
            else _passes(operation.name, response[1])
        )
        if not passes:
            return None
        _asked_by_thread.ask()  # a job that has ended sends nothing again
        doubled: float = self._limits.backoff_seconds * 2 ** (attempts - 1)
        return min(doubled, _LONGEST_BACKOFF_SECONDS) * random.uniform(0.5, 1)


def _is_transport(error: Exception | None) -> bool:
    from botocore.exceptions import (  # type: ignore[import-untyped]
        ConnectionError,
        HTTPClientError,
    )

    return isinstance(error, ConnectionError | HTTPClientError)


def _passes(operation: str, answer: dict[str, Any]) -> bool:
    """Whether the same request may succeed in a moment."""
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status < 300:
        return _NEEDED.get(operation, "ResponseMetadata") not in answer
    if status >= 500:
        return status not in _LASTING_STATUS
    code = answer.get("Error", {}).get("Code")
    return status in _PASSING_STATUS or code in _PASSING_CODES


def _leads_nowhere(operation: str, answer: dict[str, Any]) -> bool:
    """Whether it is a redirect without a region. botocore asks for the region with `HeadBucket`,
    and would do so for ever if a server redirects everything."""
    told = answer.get("ResponseMetadata", {})
    redirected = told.get("HTTPStatusCode") in _REDIRECTS
    region = "x-amz-bucket-region" in told.get("HTTPHeaders", {})
    return operation == "HeadBucket" and redirected and not region


class _AskedByThread(threading.local):
    """The function that the job of this thread wants called; none outside `beside`."""

    def __init__(self) -> None:
        self.ask: Ask = lambda: None


_asked_by_thread = _AskedByThread()


def beside(
    call: Callable[[Ask], Answer],
    control: Control,
    seconds: float,
    undo: Callable[[], object] | None = None,
) -> Answer:
    """Run `call` in a separate thread, so that a job can end while its store is silent.

    `call` gets a function to call regularly, which raises once nobody waits any more. If the job
    ends first, or `seconds` pass, `undo` runs as soon as `call` has returned, which is awaited for
    a moment only. Raises `TimeoutError` after `seconds`.
    """
    answers: queue.SimpleQueue[tuple[Answer | None, Exception | None]] = queue.SimpleQueue()
    left = threading.Event()

    def ask() -> None:
        control.checkpoint()
        if left.is_set():
            raise Cancelled

    def run() -> None:
        _asked_by_thread.ask = ask
        try:
            answers.put((call(ask), None))
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            answers.put((None, error))

    worker = threading.Thread(target=run, name="store", daemon=True)
    worker.start()
    try:
        answer, error = _wait(answers, worker, control, seconds)
        if isinstance(error, Cancelled | DeadlineExceeded):
            raise error
        control.checkpoint()  # a small clip arrives before the first check
    except (Cancelled, DeadlineExceeded, TimeoutError):
        left.set()
        if undo is not None:
            _soon(worker, undo)
        raise
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]  # None only where `Answer` is None


def _wait(
    answers: queue.SimpleQueue[tuple[Answer | None, Exception | None]],
    worker: threading.Thread,
    control: Control,
    seconds: float,
) -> tuple[Answer | None, Exception | None]:
    end = time.monotonic() + seconds
    while worker.is_alive():
        worker.join(_POLL_SECONDS)
        control.checkpoint()
        if worker.is_alive() and time.monotonic() >= end:
            raise TimeoutError(f"no answer for {seconds:g} seconds")
    return answers.get_nowait()


def _soon(worker: threading.Thread, undo: Callable[[], object]) -> None:
    def run() -> None:
        worker.join()
        undo()

    tidy = threading.Thread(target=run, name="undo", daemon=True)
    tidy.start()
    tidy.join(_UNDO_SECONDS)
