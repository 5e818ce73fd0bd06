"""Documents the Runpod door for OpenAPI, with the documented example."""

from __future__ import annotations

from typing import Any

from wan_engine.gateway.openapi import without_null
from wan_engine.schema import ReferenceRequest, VideoRequest

_INPUT = {
    "prompt": "A person walking through a sunny park, leaves gently swaying",
    "image": "https://example.com/person-park.jpg",
    "size": "1280*720",
    "duration": 5,
    "shot_type": "single",
    "seed": -1,
    "enable_prompt_expansion": False,
}


def _text_schema() -> dict[str, Any]:
    """The schema of the input without references."""
    known = without_null(ReferenceRequest.model_json_schema())
    shown = {name: field for name, field in known["properties"].items() if name != "references"}
    return {
        **known,
        "title": "wan-2-6-t2v input",
        "description": "One clip of text-to-video generation.",
        "required": [name for name in known["required"] if name != "references"],
        "properties": shown,
    }


INPUTS: dict[str, dict[str, Any]] = {
    "wan-2-6-i2v": without_null(VideoRequest.model_json_schema()),
    "wan-2-6-r2v": without_null(ReferenceRequest.model_json_schema()),
    "wan-2-6-t2v": _text_schema(),
}
"""The input by endpoint."""

REQUEST: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["input"],
                    "properties": {
                        "input": {"anyOf": list(INPUTS.values())},
                        "webhook": {
                            "type": "string",
                            "format": "uri",
                            "description": "The server sends the final answer to this URL by POST.",
                        },
                        "policy": {
                            "type": "object",
                            "description": "Limits of this job, in milliseconds.",
                            "properties": {
                                "executionTimeout": {
                                    "type": "integer",
                                    "minimum": 5_000,
                                    "maximum": 604_800_000,
                                    "description": "Counted from the start of the work.",
                                },
                                "ttl": {
                                    "type": "integer",
                                    "minimum": 10_000,
                                    "maximum": 604_800_000,
                                    "description": "Counted from now, queue included.",
                                },
                            },
                        },
                    },
                },
                "example": {"input": _INPUT},
            }
        },
    }
}
"""The body of `run` and `runsync`."""


_ID = "a1b2c3d4-e5f6-7890-abcd-ef1234567890-u1"
_STATUS = {
    "type": "string",
    "description": "Request status. Returns `COMPLETED` on success, `FAILED` on error.",
    "enum": ["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"],
}
_JOB = {
    "type": "object",
    "required": ["id", "status"],
    "properties": {
        "id": {"type": "string", "description": "Unique identifier for the request."},
        "status": _STATUS,
        "delayTime": {
            "type": "integer",
            "description": "Time in milliseconds the request spent in queue before processing "
            "began.",
        },
        "executionTime": {
            "type": "integer",
            "description": "Time in milliseconds the model took to generate the video.",
        },
        "workerId": {"type": "string"},
        "output": {
            "type": "object",
            "description": "The generation result containing the video URL and cost. For a "
            "running job, its progress: `stage`, `step`, `steps`.",
            "properties": {
                "video_url": {
                    "type": "string",
                    "format": "uri",
                    "description": "URL of the generated video. This URL expires after 7 days.",
                },
                "result": {"type": "string", "format": "uri", "description": "The same link."},
                "cost": {
                    "type": "number",
                    "description": "Cost of the generation in USD.",
                },
                "seed": {"type": "integer", "description": "The seed that was used."},
                "warnings": {"type": "array", "items": {"type": "string"}},
            },
        },
        "error": {"type": "string"},
    },
}
_STREAM = {
    "type": "object",
    "required": ["status", "stream"],
    "properties": {
        "status": _STATUS,
        "stream": {
            "type": "array",
            "items": {"type": "object", "properties": {"output": {"type": "object"}}},
        },
    },
}
_COUNTS = {"type": "object", "additionalProperties": {"type": "integer"}}
_HEALTH = {
    "type": "object",
    "required": ["jobs", "workers"],
    "properties": {
        "jobs": _COUNTS,
        "workers": _COUNTS,
        "models": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
_PURGED = {
    "type": "object",
    "required": ["removed", "status"],
    "properties": {"removed": {"type": "integer"}, "status": {"type": "string"}},
}
_REFUSED = {
    "type": "object",
    "required": ["error", "status"],
    "properties": {"error": {"type": "string"}, "status": {"type": ["string", "integer"]}},
}

Answers = dict[int | str, dict[str, Any]]


def _answer(description: str, schema: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    shown = {"schema": schema, "example": example}
    return {"description": description, "content": {"application/json": shown}}


def _refused(description: str, error: str, **more: object) -> dict[str, Any]:
    return _answer(description, _REFUSED, {"error": error, "status": "FAILED", **more})


_OUTPUT = {"video_url": "https://video.example.com/clip.mp4", "cost": 0.5}
_FAILURES: Answers = {
    401: _refused("No key, or one that is not known", "no token provided"),
    404: _refused("No such endpoint or job", "job not found", status=404, title="Not Found"),
    429: _refused("Too many requests, or the queue is full", "Too many requests"),
}
_REFUSALS: Answers = {
    400: _refused(
        "The request is wrong",
        "Invalid image URL: the server answered 404",
        id=f"sync-{_ID}",
    ),
    **_FAILURES,
    413: _refused("Too large", "The body is larger than 10 MB"),
}
_ENDED = _answer(
    "The job, ended or in its present state",
    _JOB,
    {
        "delayTime": 28,
        "executionTime": 95432,
        "id": f"sync-{_ID}",
        "output": _OUTPUT,
        "status": "COMPLETED",
    },
)
_QUEUED = _answer("The job is queued", _JOB, {"id": _ID, "status": "IN_QUEUE"})

RUN: Answers = {200: _QUEUED, **_REFUSALS}
RUNSYNC: Answers = {200: _ENDED, **_REFUSALS}
STATUS: Answers = {200: _ENDED, **_FAILURES}
STATUS_SYNC: Answers = {
    200: _ENDED,
    400: _refused("`wait` is not a number", 'field "wait" must be an integer from 1000 to 300000'),
    **_FAILURES,
}
STREAMED: Answers = {
    200: _answer(
        "What has come out",
        _STREAM,
        {"status": "COMPLETED", "stream": [{"output": _OUTPUT}]},
    ),
    **_FAILURES,
}
CANCELLED: Answers = {
    200: _answer("The job has ended", _JOB, {"id": _ID, "status": "CANCELLED"}),
    **_FAILURES,
}
RETRIED: Answers = {
    200: _QUEUED,
    400: _refused("The job has not failed", "Only a job that failed or timed out can be retried"),
    **_FAILURES,
}
PURGED: Answers = {
    200: _answer("Done", _PURGED, {"removed": 2, "status": "completed"}),
    **_FAILURES,
}
HEALTH: Answers = {
    200: _answer(
        "Jobs and workers",
        _HEALTH,
        {
            "jobs": {"completed": 1, "failed": 0, "inProgress": 1, "inQueue": 2, "retried": 0},
            "workers": {
                "idle": 0,
                "initializing": 0,
                "ready": 1,
                "running": 1,
                "throttled": 0,
                "unhealthy": 0,
            },
        },
    ),
    **_FAILURES,
}
