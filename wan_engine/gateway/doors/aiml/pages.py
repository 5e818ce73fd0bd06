"""Documents the AI/ML API's routes for OpenAPI: bodies, answers, and the documented examples."""

from __future__ import annotations

from typing import Any

from wan_engine.gateway.doors.aiml import wire

PATH = "/v2/video/generations"
_ID = "V2cdWP9kao8xiofM-OvwG"
_ERROR_SCHEMA = {
    "type": "object",
    "required": ["message", "path", "requestId", "statusCode", "timestamp"],
    "properties": {
        "message": {"type": "string"},
        "path": {"type": "string"},
        "requestId": {"type": "string"},
        "statusCode": {"type": "string"},
        "timestamp": {"type": "string", "format": "date-time"},
    },
}
_GENERATION_SCHEMA = {
    "type": "object",
    "required": ["id", "status"],
    "properties": {
        "id": {"type": "string"},
        "status": {"type": "string", "enum": ["queued", "generating", "completed", "error"]},
        "video": {
            "type": "object",
            "required": ["url"],
            "properties": {"url": {"type": "string", "format": "uri"}},
        },
        "error": {
            "type": "object",
            "required": ["name", "message"],
            "properties": {"name": {"type": "string"}, "message": {"type": "string"}},
        },
        "meta": {
            "type": "object",
            "properties": {
                "usage": {
                    "type": "object",
                    "required": ["credits_used"],
                    "properties": {"credits_used": {"type": "number"}},
                }
            },
        },
    },
}


def _answer(description: str, schema: dict[str, Any], example: object = None) -> dict[str, Any]:
    shown = {"schema": schema} if example is None else {"schema": schema, "example": example}
    return {"description": description, "content": {"application/json": shown}}


_FAILURES: dict[int | str, dict[str, Any]] = {
    400: _answer(
        "The request is wrong; the message names each field",
        _ERROR_SCHEMA,
        {
            "message": 'Body validation error\nRequired at "image_url"',
            "path": PATH,
            "requestId": "798b860e-98c2-4e8e-8c50-550bcfc2eccc",
            "statusCode": "400",
            "timestamp": "2026-01-07T07:13:27.813Z",
        },
    ),
    401: _answer("No valid key", _ERROR_SCHEMA),
    429: _answer("Too many requests, or the queue is full", _ERROR_SCHEMA),
}
CREATE: dict[str, Any] = {
    "operation_id": "aiml_create",
    "summary": "Create a video",
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "oneOf": [
                            wire.GenerationRequest.model_json_schema(),
                            wire.ReferenceGenerationRequest.model_json_schema(),
                        ]
                    },
                    "example": {
                        "model": "alibaba/wan-2-6-i2v",
                        "prompt": "Mona Lisa puts on glasses with her hands.",
                        "image_url": "https://raw.githubusercontent.com/aimlapi/api-docs/main/"
                        "reference-files/mona_lisa_extended.jpg",
                        "duration": "5",
                    },
                }
            },
        }
    },
    "responses": {
        200: _answer(
            "The video is in the queue",
            _GENERATION_SCHEMA,
            {"id": _ID, "status": "queued", "meta": {"usage": {"credits_used": 1575000}}},
        ),
        **_FAILURES,
        413: _answer("The body is too large", _ERROR_SCHEMA),
    },
}
POLL: dict[str, Any] = {
    "operation_id": "aiml_poll",
    "summary": "Ask for a video",
    # The route takes a request without it, to refuse it in this API's words.
    "openapi_extra": {
        "parameters": [
            {
                "name": "generation_id",
                "in": "query",
                "required": True,
                "description": "The `id` of the answer to the POST.",
                "schema": {"type": "string"},
            }
        ]
    },
    "responses": {
        200: _answer(
            "How far it is",
            _GENERATION_SCHEMA,
            {
                "id": _ID,
                "status": "completed",
                "video": {
                    "url": "https://cdn.example.com/29195163-523901dd.mp4?expires=1767805107"
                },
            },
        ),
        **_FAILURES,
        404: _answer("No generation of this caller has this id", _ERROR_SCHEMA),
    },
}
