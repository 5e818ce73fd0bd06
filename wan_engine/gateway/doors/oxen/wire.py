"""Builds the answers of Oxen's media API. These are functions of plain values, without HTTP and
without the jobs service."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from wan_engine.gateway.job import Job, State

EVENT = "media_generation_completed"
PADDING = b": " + b" " * 4096 + b"\n\n"
"""A comment that follows each event. The documented client reads the stream with awk. On Debian and
Ubuntu awk is mawk, which reads a pipe in blocks of 4096 bytes."""

STATUS: Mapping[State, str] = {
    "queued": "queued",
    "running": "processing",
    "completed": "succeeded",
    "failed": "failed",
    "cancelled": "cancelled",
    "expired": "failed",
}
ACTIVE = ("queued", "processing")
TARGETS = ("target_namespace", "target_repo", "target_directory")
"""The target of a clip in the hosted API. Here these are only labels."""

WAITED_FOR = "waited_for"
"""Marks the job of a sync route, which does not appear in the queue."""

_NOT_SHOWN = ("model", "num_generations", WAITED_FOR)
_TITLES = {
    "unauthenticated": "You must be authenticated to access this resource",
    "invalid_params": "Invalid parameters supplied, please check your request and try again.",
    "resource_not_found": "The requested resource could not be found",
    "too_many_requests": "Too many requests, please try again later",
    "unknown_error": "Something went wrong",
}


# --- the answers ---------------------------------------------------------------------------------


def videos(
    model: str, created: int, video: Mapping[str, str], warnings: list[str] | None = None
) -> dict[str, Any]:
    """The sync route's answer. `created` is in Unix seconds; `video` has `url` or `b64_json`. The
    hosted page does not have `warnings`, which appear only if there are any."""
    told = {"warnings": warnings} if warnings else {}
    return {"model": model, "created": created, "videos": [dict(video)], **told}


def enqueued(ids: list[str], named: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The queue's answer to an accepted request. `named` is the target of the clips."""
    told = {"status": "queued", **(named or {})}
    return {"generations": [{"generation_id": one, **told} for one in ids]}


def _seconds(ms: int | None) -> int | None:
    return None if ms is None else ms // 1000


def generation(job: Job, url: str | None) -> dict[str, Any]:
    """A generation as the queue shows it: ten keys that are always present, the target, then the
    other submitted parameters. `url` is the URL of a finished clip."""
    shown = {
        "generation_id": job.id,
        "model_name": job.model,
        "prompt": job.payload.get("prompt"),
        "media_type": "video",
        "status": STATUS[job.state],
        "result_url": url if job.state == "completed" else None,
        "error_message": _failure(job) if STATUS[job.state] == "failed" else None,
        "enqueued_at": _seconds(job.created_ms),
        "started_at": _seconds(job.started_ms),
        "completed_at": _seconds(job.finished_ms),
        **{name: job.payload.get(name) for name in TARGETS},
    }
    extra = {
        key: value
        for key, value in job.payload.items()
        if key not in _NOT_SHOWN and key not in shown and value is not None
    }
    told = {"warnings": job.warnings} if job.warnings else {}
    return {**shown, **extra, **told}


def recorded(job: Job, url: str | None) -> dict[str, Any]:
    """The same generation with its cost in USD and its owner."""
    user = {"user_id": job.owner, "username": job.owner, "user_image": None}
    return {**generation(job, url), "cost": str(cost_of(job)), **user}


def cost_of(job: Job) -> Decimal:
    """The cost in USD; 0 without a clip."""
    return Decimal(str((job.result or {}).get("cost", 0)))


def history(shown: list[dict[str, Any]], page: int, size: int, entries: int, cost: Decimal) -> Any:
    """A page of the list of all generations."""
    return {
        "count": len(shown),
        "generations": shown,
        "page_number": page,
        "page_size": size,
        "total_pages": -(-entries // size),
        "total_entries": entries,
        "total_cost": str(cost),
    }


def found(shown: dict[str, Any]) -> dict[str, Any]:
    """The answer with one of all the generations."""
    return {"status": "success", "status_message": "resource_found", "generation": shown}


def generations(shown: list[dict[str, Any]]) -> dict[str, Any]:
    """The queue's list."""
    return {"count": len(shown), "generations": shown}


def listed(shown: list[bytes]) -> bytes:
    """The same list, from generations that are already JSON."""
    return b'{"count":%d,"generations":[%s]}' % (len(shown), b",".join(shown))


def cancelled(generation_id: str) -> dict[str, Any]:
    """The answer to a DELETE, also of a generation that had already ended."""
    return {"status": "success", "generation_id": generation_id}


def _failure(job: Job) -> str:
    return job.error or "The generation was stopped"


def event(job: Job, url: str | None) -> bytes | None:
    """The event of a generation that has ended, as bytes for the stream. None for a cancelled or an
    active generation.

    Compact JSON with LF: the documented awk client searches for `"generation_id":"<id>"` and for
    lines that end with the name of the event.
    """
    status = STATUS[job.state]
    body: dict[str, Any] = {"generation_id": job.id, "status": status, "media_type": "video"}
    if status == "succeeded":
        body |= {"model": job.model, "url": url}
        if job.warnings:
            body["warnings"] = job.warnings
    elif status == "failed":
        body |= {"error": _failure(job)}
    else:
        return None
    return f"event: {EVENT}\ndata: {json.dumps(body, separators=(',', ':'))}\n\n".encode()


# --- errors, in two formats ----------------------------------------------------------------------


def message(sentence: str) -> dict[str, Any]:
    """The error format of models: one sentence."""
    return {"error": {"message": sentence}}


def failure(kind: str, detail: str | None = None) -> dict[str, Any]:
    """The error format of the API itself: a type, its title, and the detail."""
    error = {"type": kind, "title": _TITLES[kind]}
    if detail is not None:
        error["detail"] = detail
    return {"error": error, "status": "error", "status_message": kind}


def model_not_found(name: object) -> dict[str, Any]:
    """The error for a model that this door does not have."""
    return message(f"Model not found: {str(name)[:200]}")
