"""What OpenAPI says of the Runpod door, with the documented example."""

from __future__ import annotations

from typing import Any

from wan_engine.schema import VideoRequest

_INPUT = {
    "prompt": "A person walking through a sunny park, leaves gently swaying",
    "image": "https://example.com/person-park.jpg",
    "size": "1280*720",
    "duration": 5,
    "shot_type": "single",
    "seed": -1,
    "enable_prompt_expansion": False,
}

REQUEST: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["input"],
                    "properties": {
                        "input": VideoRequest.model_json_schema(),
                        "webhook": {
                            "type": "string",
                            "format": "uri",
                            "description": "Gets the final answer by POST.",
                        },
                        "policy": {
                            "type": "object",
                            "description": "Limits of this job, in milliseconds.",
                            "properties": {
                                "executionTimeout": {
                                    "type": "integer",
                                    "minimum": 5_000,
                                    "maximum": 604_800_000,
                                    "description": "From when the work begins.",
                                },
                                "ttl": {
                                    "type": "integer",
                                    "minimum": 10_000,
                                    "maximum": 604_800_000,
                                    "description": "From now on, queue included.",
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


def _answer(description: str, example: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"example": example}}}


ANSWERS: dict[int | str, dict[str, Any]] = {
    200: _answer(
        "The job",
        {
            "delayTime": 28,
            "executionTime": 95432,
            "id": "sync-a1b2c3d4-e5f6-7890-abcd-ef1234567890-u1",
            "output": {"video_url": "https://video.example.com/clip.mp4", "cost": 0.5},
            "status": "COMPLETED",
        },
    ),
    400: _answer(
        "The request cannot be used",
        {
            "id": "sync-a1b2c3d4-e5f6-7890-abcd-ef1234567890-u1",
            "status": "FAILED",
            "error": "Invalid image URL: the server answered 404",
        },
    ),
    401: _answer("No key, or one that is not known", {"error": "No API key was given"}),
    404: _answer("No such endpoint or job", {"error": "job not found"}),
    413: _answer("Too large", {"error": "The body is larger than 10 MB"}),
    429: _answer("Too many requests, or the queue is full", {"error": "Too many requests"}),
}
PURGED: dict[int | str, dict[str, Any]] = {
    200: _answer("Done", {"removed": 2, "status": "completed"})
}
HEALTH: dict[int | str, dict[str, Any]] = {
    200: _answer(
        "Jobs and workers",
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
    )
}
