"""Builds the answers of `/v1/videos`. These are functions of plain values, without HTTP and without
the jobs service."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from wan_engine.control import Progress
from wan_engine.gateway.job import Job, State
from wan_engine.gateway.links import WEEK_SECONDS

STATUS: Mapping[State, str] = {
    "queued": "queued",
    "running": "in_progress",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "failed",
    "expired": "failed",
}
_PARTS: Mapping[str, tuple[int, int]] = {
    # The percentages of progress at which a stage begins and ends.
    "denoise": (5, 90),
    "decode": (90, 97),
    "encode": (97, 98),
    "sound": (98, 98),
    "publish": (98, 99),
}
_CODES = {"content_policy": "moderation_blocked"}


def new_id() -> str:
    return f"video_{uuid.uuid4().hex}"


def video(job: Job) -> dict[str, Any]:
    """A video, as every route shows it. With a picture, `size` is a pixel budget, because the
    picture gives the shape."""
    status, said = STATUS[job.state], job.payload
    done = status == "completed"
    shown: dict[str, Any] = {
        "id": job.id,
        "object": "video",
        "model": said.get("model", job.model),
        "status": status,
        "progress": 100 if done else _percent(job.progress),
        "created_at": job.created_ms // 1000,
        "completed_at": _seconds(job.finished_ms) if done else None,
        "expires_at": _seconds(job.finished_ms, WEEK_SECONDS) if done else None,
        "error": _error(job) if status == "failed" else None,
        "prompt": said.get("prompt"),
        "seconds": str(said.get("seconds")),
        "size": said.get("size"),
        "remixed_from_video_id": None,
    }
    warnings = [*said.get("warnings", ()), *job.warnings]
    return {**shown, "warnings": warnings} if warnings else shown


def listed(jobs: Sequence[Job], *, has_more: bool) -> dict[str, Any]:
    """A page of videos."""
    return {
        "object": "list",
        "data": [video(job) for job in jobs],
        "first_id": jobs[0].id if jobs else None,
        "last_id": jobs[-1].id if jobs else None,
        "has_more": has_more,
    }


def deleted(video_id: str) -> dict[str, Any]:
    return {"id": video_id, "object": "video.deleted", "deleted": True}


def failure(
    message: str, kind: str = "invalid_request_error", code: str | None = None, param: object = None
) -> dict[str, Any]:
    """The body of an answer with a status of 400 or more."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def failed(job: Job) -> dict[str, Any]:
    """The same body for a job that failed or was cancelled."""
    error = _error(job)
    kind = "invalid_request_error" if job.callers_fault else "server_error"
    return failure(error["message"], kind, error["code"])


def _error(job: Job) -> dict[str, str]:
    code = job.error_code or job.state
    return {
        "code": _CODES.get(code, code),
        "message": job.error or "The generation was stopped",
    }


def _percent(progress: Progress | None) -> int:
    if progress is None or progress.stage not in _PARTS:
        return 0
    begin, end = _PARTS[progress.stage]
    done = min(progress.step / progress.steps, 1.0) if progress.steps else 0.0
    return begin + int((end - begin) * done)


def _seconds(ms: int | None, more: int = 0) -> int | None:
    return None if ms is None else ms // 1000 + more
