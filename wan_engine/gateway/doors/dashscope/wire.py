"""Builds DashScope's answers. These are functions of plain values, without HTTP and without the
jobs service."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from wan_engine.gateway.doors.dashscope.parameters import MODELS, size_of
from wan_engine.gateway.job import DAY_SECONDS, Job, State, now_ms

LIFE_SECONDS = int(DAY_SECONDS)
"""How long after its end a task and the link to its clip are available."""

STATUS: Mapping[State, str] = {
    "queued": "PENDING",
    "running": "RUNNING",
    "completed": "SUCCEEDED",
    "failed": "FAILED",
    "cancelled": "CANCELED",
    "expired": "FAILED",
}
_CODES = {
    # The codes of `wan_engine.errors`, and those of Model Studio's page of error codes.
    "invalid_media": "InvalidURL",
    "invalid_request": "InvalidParameter",
    "content_policy": "DataInspectionFailed",
    "deadline_exceeded": "InternalError.Timeout",
    "time_limit_too_short": "InternalError.Timeout",
}
_SENTENCES = {
    # The text of the page of error codes, by the beginning of our sentence. Our sentence follows
    # it.
    "Content policy: video": "Output data may contain inappropriate content.",
    "Content policy": "Input data may contain inappropriate content.",
    "Invalid image URL": "The request URL is invalid, please check the request URL is available "
    "and the request image format is one of the following types: JPEG, JPG, PNG, BMP, and WEBP.",
}


def created(job: Job) -> dict[str, Any]:
    """The answer to an accepted request."""
    output = {"task_status": "PENDING", "task_id": job.id}
    return {"output": output, "request_id": request_id()}


def task(job: Job, url: str | None) -> dict[str, Any]:
    """The answer to a poll. `url` is the URL of a finished clip."""
    status = STATUS[job.state]
    output: dict[str, Any] = {"task_id": job.id, "task_status": status}
    output |= _times(job)
    answer = {"request_id": request_id(), "output": output}
    if status == "SUCCEEDED":
        prompt = job.payload.get("prompt")
        warnings = [*job.payload.get("warnings", ()), *job.warnings]
        output |= {"orig_prompt": prompt or "", "video_url": url}
        output |= {"warnings": warnings} if warnings else {}
        answer["usage"] = usage(job)
    elif status == "FAILED":
        output |= {"code": _code(job), "message": _message(job)}
    return answer


def unknown(task_id: str) -> dict[str, Any]:
    """The answer to a poll of a task that does not exist or is no longer available."""
    output = {"task_id": task_id, "task_status": "UNKNOWN"}
    return {"request_id": request_id(), "output": output}


def is_over(job: Job) -> bool:
    """Whether the task ended so long ago that it counts as unknown."""
    return job.finished_ms is not None and now_ms() - job.finished_ms > LIFE_SECONDS * 1000


def usage(job: Job) -> dict[str, Any]:
    """The usage of a clip. Reference videos are free here."""
    model, said = MODELS[job.model], job.payload
    seconds, budget = said["seconds"], said["budget"]
    counted = {
        "duration": seconds,
        "input_video_duration": 0,
        "output_video_duration": seconds,
        "video_count": 1,
        "SR": 720 if budget == "1280*720" else 1080,
    }
    if model.ratio:
        counted["ratio"] = said["ratio"]
    elif model.kind != "i2v":
        counted["size"] = size_of(budget, said["ratio"])
    if model.flash:
        counted["audio"] = said["audio"]
    return counted


def row(job: Job) -> dict[str, Any]:
    """A task in a list of tasks. Times are in milliseconds since 1970."""
    return {
        "task_id": job.id,
        "status": STATUS[job.state],
        "model_name": job.model,
        "gmt_create": job.created_ms,
        "start_time": job.started_ms,
        "end_time": job.finished_ms,
        **({"code": _code(job), "message": _message(job)} if STATUS[job.state] == "FAILED" else {}),
    }


def listed(
    rows: Sequence[Mapping[str, Any]], page_no: int, page_size: int, total: int
) -> dict[str, Any]:
    """A page of the list of tasks."""
    return {
        "request_id": request_id(),
        "data": rows,
        "page_no": page_no,
        "page_size": page_size,
        "total": total,
        "total_page": -(-total // page_size),
    }


def failure(code: str, message: str) -> dict[str, Any]:
    """The body of an answer with a status of 400 or more."""
    return {"code": code, "message": message, "request_id": request_id()}


def request_id() -> str:
    return str(uuid.uuid4())


def _times(job: Job) -> dict[str, str]:
    known = {
        "submit_time": job.created_ms,
        "scheduled_time": job.started_ms,
        "end_time": job.finished_ms,
    }
    return {name: _time(ms) for name, ms in known.items() if ms is not None}


def _time(ms: int) -> str:
    """Format a time in UTC, as `2025-09-25 11:07:28.590`."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _code(job: Job) -> str:
    return _CODES.get(job.error_code or "", "InternalError")


def _message(job: Job) -> str:
    ours = job.error or "The task was stopped"
    page = next((text for begin, text in _SENTENCES.items() if ours.startswith(begin)), None)
    return ours if page is None else f"{page} ({ours})"
