"""Defines a job, a request to a door, and the states of a job.

queued -> running -> completed | failed | expired
queued, running -> cancelled          queued -> failed (a wrong request), expired
running -> queued (its engine or this process died)     failed, expired -> queued (retry)
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from wan_engine.control import Progress
from wan_engine.errors import InvalidRequest
from wan_engine.schema import Task, parse_request

State = Literal["queued", "running", "completed", "failed", "cancelled", "expired"]
FINAL: tuple[State, ...] = ("completed", "failed", "cancelled", "expired")
RETRYABLE: tuple[State, ...] = ("failed", "expired")

CALLERS_FAULTS = ("invalid_request", "invalid_media", "content_policy", "time_limit_too_short")
"""Codes of `wan_engine.errors` that the caller can mend; any other is the engine's or the
operator's."""

DAY_SECONDS = 86_400.0


def now_ms() -> int:
    """Milliseconds since 1970, as all times of a job are."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class NewJob:
    """What a door hands in. The door makes `id`, in its API's own form, not to be guessed.

    `request` has the fields of a `Request`, unchecked: a wrong one makes a job that has failed.
    So does a sentence in `refused`, where the door has found the fault, in its API's own words.
    `payload` is small and for the door alone, to answer with: it stays in memory with the job.
    `base_url` is where this caller reaches the gateway, for the links in its answers.
    `webhook` gets the door's answer by POST when the job has ended.
    `ttl_seconds` count from now on, queue included; `run_seconds` from when the work begins.
    """

    id: str
    door: str
    model: str
    owner: str
    request: Mapping[str, Any]
    base_url: str
    payload: Mapping[str, Any] = field(default_factory=dict)
    webhook: str | None = None
    ttl_seconds: float = DAY_SECONDS
    run_seconds: float | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Job:
    """A job as everybody sees it; a new one for each change. Times are milliseconds since 1970.

    The request is not in it, as it may be megabytes: `Jobs.request(id)`. `result` is
    `VideoResult.output()`; its URLs may be `file:` ones, so give callers `Links.url(job)`.
    `error` is the sentence for the caller, `error_code` a code of `wan_engine.errors`. `task` is
    what its request asks for.
    `progress` is known while the job runs, and not kept. `workers_lost` counts the workers that
    ended while the job had their device.
    """

    id: str
    door: str
    model: str
    owner: str
    state: State
    payload: Mapping[str, Any]
    base_url: str
    webhook: str | None
    run_seconds: float | None
    ttl_seconds: float
    created_ms: int
    queued_ms: int
    expires_ms: int
    started_ms: int | None = None
    finished_ms: int | None = None
    result: Mapping[str, Any] | None = None
    error: str | None = None
    error_code: str | None = None
    task: Task = "image-to-video"
    workers_lost: int = 0
    retries: int = 0
    remote_id: str | None = None
    worker: str | None = None
    progress: Progress | None = None

    @property
    def final(self) -> bool:
        return self.state in FINAL

    @property
    def callers_fault(self) -> bool:
        """Whether it failed for something that the caller can mend."""
        return self.error_code in CALLERS_FAULTS

    @property
    def delay_ms(self) -> int | None:
        """From when it was queued, last if it was retried, to the work; None before."""
        return None if self.started_ms is None else max(0, self.started_ms - self.queued_ms)

    @property
    def execution_ms(self) -> int | None:
        """From the begin of the work to its end; None before."""
        if self.started_ms is None or self.finished_ms is None:
            return None
        return max(0, self.finished_ms - self.started_ms)


def queued_again(job: Job) -> Job:
    """As before it was begun. Its `remote_id` stays, so that it is followed and not sent again."""
    return replace(
        job,
        state="queued",
        started_ms=None,
        finished_ms=None,
        result=None,
        error=None,
        error_code=None,
        remote_id=None if job.final else job.remote_id,
        progress=None,
        worker=None,
    )


def accepted(new: NewJob) -> Job:
    """The job that it begins as: queued, or failed where its request is wrong."""
    now = now_ms()
    job = Job(
        id=new.id,
        door=new.door,
        model=new.model,
        owner=new.owner,
        state="queued",
        payload=dict(new.payload),
        base_url=new.base_url,
        webhook=new.webhook,
        run_seconds=new.run_seconds,
        ttl_seconds=new.ttl_seconds,
        created_ms=now,
        queued_ms=now,
        expires_ms=now + round(new.ttl_seconds * 1000),
    )
    try:
        if new.refused is not None:
            raise InvalidRequest(new.refused)
        job = replace(job, task=parse_request(new.request).order().task)
    except InvalidRequest as error:
        job = replace(job, state="failed", started_ms=now, finished_ms=now)
        return replace(job, error=str(error), error_code=error.code)
    return job
