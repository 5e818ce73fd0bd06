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
from wan_engine.schema import Order, Task, parse_request

State = Literal["queued", "running", "completed", "failed", "cancelled", "expired"]
FINAL: tuple[State, ...] = ("completed", "failed", "cancelled", "expired")
RETRYABLE: tuple[State, ...] = ("failed", "expired")

CALLERS_FAULTS = ("invalid_request", "invalid_media", "content_policy", "time_limit_too_short")
"""Codes of `wan_engine.errors` that the caller can correct. The others are for the operator."""

DAY_SECONDS = 86_400.0


def now_ms() -> int:
    """Milliseconds since 1970, as all times of a job are."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class NewJob:
    """A job that a door submits. The door makes an unguessable `id` in its API's own form.

    `request` has the fields of a `Request`, unchecked. A wrong request makes a failed job, and so
    does a sentence in `refused`, for an error that the door found. `payload` is small data for the
    door's own answers and stays in memory with the job. `base_url` is where this caller reaches the
    gateway, for links. `webhook` gets the door's answer by POST when the job has ended.
    `ttl_seconds` count from now, queue included; `run_seconds` count from the begin of the work.
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
    """A job. Every change makes a new object. Times are milliseconds since 1970.

    It does not contain the request, which may be megabytes: use `Jobs.request(id)`. `result` is
    `VideoResult.output()`; its URLs may be `file:` URLs, so give callers `Links.url(job)`. `error`
    is the sentence for the caller, `error_code` a code of `wan_engine.errors`. `task` is the task
    of its request. `progress` is set while the job runs, and not stored. `kind` names everything
    that decides how long the job takes, and is not stored either. `workers_lost` counts the workers
    that ended while the job had their device.
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
    kind: str | None = field(default=None, compare=False)

    @property
    def final(self) -> bool:
        return self.state in FINAL

    @property
    def warnings(self) -> list[str]:
        """The parts of the request that a finished clip does not fulfil, one sentence each."""
        return list((self.result or {}).get("warnings", ()))

    @property
    def callers_fault(self) -> bool:
        """Whether the caller can correct the cause of the failure."""
        return self.error_code in CALLERS_FAULTS

    @property
    def delay_ms(self) -> int | None:
        """The time from the last queueing to the beginning of the work. None before."""
        return None if self.started_ms is None else max(0, self.started_ms - self.queued_ms)

    @property
    def execution_ms(self) -> int | None:
        """The time from the beginning of the work to its end. None before."""
        if self.started_ms is None or self.finished_ms is None:
            return None
        return max(0, self.finished_ms - self.started_ms)


def kind_of(order: Order) -> str:
    """A text for everything that decides how long a request takes on the same machine."""
    several = order.shot_type == "multi" and order.expand_prompt
    parts = (
        order.task,
        order.size,
        f"{order.duration} s",
        "several shots" if several else "one shot",
        "a sound" if order.audio is not None else "no sound",
    )
    return ", ".join(parts)


def queued_again(job: Job) -> Job:
    """The job as it was before its start. Its `remote_id` stays, so that it is followed and not
    sent again."""
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
    """The first state of the job: queued, or failed if its request is wrong."""
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
        order = parse_request(new.request).order()
        job = replace(job, task=order.task, kind=kind_of(order))
    except InvalidRequest as error:
        job = replace(job, state="failed", started_ms=now, finished_ms=now)
        return replace(job, error=str(error), error_code=error.code)
    return job
