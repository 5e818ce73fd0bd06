"""Documents Oxen's routes for OpenAPI: bodies, answers, and the documented examples."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sse_starlette import EventSourceResponse

from wan_engine.gateway.doors.oxen import models, parameters, wire
from wan_engine.gateway.openapi import without_null

_ID = "bb8f5eb7-361e-4e13-ab73-67457bc8057e"
_MODEL = models.IMAGE_TO_VIDEO
_SAMPLE = {
    "model": _MODEL,
    "prompt": "Zoom into the ox, while it is walking forward on the road, in cinematic fashion",
    "input_image": "https://hub.oxen.ai/api/repos/ox/Oxen-AI-Assets/file/main/images/"
    "ox_zoom_out_1926_1076.png",
}
_VIDEO_URL = "https://media.example.com/video.mp4"
_NULLABLE_INTEGER = {"type": ["integer", "null"]}
_NULLABLE_TEXT = {"type": ["string", "null"]}

_WARNINGS = {
    "type": "array",
    "items": {"type": "string"},
    "description": "What the server could not do as asked. Not on the hosted page.",
}

_GENERATION: dict[str, Any] = {
    "type": "object",
    "required": [
        *("generation_id", "model_name", "prompt", "media_type", "status", "result_url"),
        *("error_message", "enqueued_at", "started_at", "completed_at"),
    ],
    "properties": {
        "generation_id": {"type": "string", "format": "uuid"},
        "model_name": {"type": "string"},
        "prompt": {},
        "media_type": {"type": "string", "enum": ["video"]},
        "status": {"type": "string", "enum": list(dict.fromkeys(wire.STATUS.values()))},
        "result_url": _NULLABLE_TEXT,
        "error_message": _NULLABLE_TEXT,
        "enqueued_at": {"type": "integer"},
        "started_at": _NULLABLE_INTEGER,
        "completed_at": _NULLABLE_INTEGER,
        **dict.fromkeys(wire.TARGETS, _NULLABLE_TEXT),
        "warnings": _WARNINGS,
    },
    "additionalProperties": True,
}
_GENERATION_EXAMPLE = {
    "generation_id": _ID,
    "model_name": _MODEL,
    "prompt": _SAMPLE["prompt"],
    "media_type": "video",
    "status": "processing",
    "result_url": None,
    "error_message": None,
    "enqueued_at": 1775091431,
    "started_at": 1775091432,
    "completed_at": None,
    **dict.fromkeys(wire.TARGETS),
    "input_image": _SAMPLE["input_image"],
    "duration": 10,
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "type": {"type": "string"},
                "title": {"type": "string"},
                "detail": {"type": "string"},
                "message": {"type": "string"},
            },
        },
        "status": {"type": "string", "enum": ["error"]},
        "status_message": {"type": "string"},
    },
}


def _answer(description: str, schema: dict[str, Any], example: object) -> dict[str, Any]:
    shown = {"schema": schema, "example": example}
    return {"description": description, "content": {"application/json": shown}}


def _schema(model: models.Model, more: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The body for one model: its name, its parameters, and the fields of the route."""
    known = without_null(model.parameters.model_json_schema())
    name = {"type": "string", "enum": [model.name]}
    documented = model.schema["properties"]
    return {
        **known,
        "title": model.name,
        "required": ["model", *known["required"]],
        "properties": {"model": name, **known["properties"], **documented, **more},
    }


def _body(**more: dict[str, Any]) -> dict[str, Any]:
    """The body of a request, which is that of one of the models."""
    schema = {"oneOf": [_schema(model, more) for model in models.MODELS.values()]}
    content = {"application/json": {"schema": schema, "example": _SAMPLE}}
    return {"requestBody": {"required": True, "content": content}}


_NOT_FOUND = _answer(
    "The caller has no generation with this id", _ERROR, wire.failure("resource_not_found")
)
_FAILURES: dict[int | str, dict[str, Any]] = {
    401: _answer("No valid key", _ERROR, wire.failure("unauthenticated")),
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    **_FAILURES,
    404: _answer("No such model", _ERROR, wire.model_not_found("bad-model-name")),
    413: _answer("The body is too large", _ERROR, wire.failure("invalid_params", "...")),
    429: _answer("The queue is full", _ERROR, wire.failure("too_many_requests", "...")),
}

GENERATE: dict[str, Any] = {
    "operation_id": "oxen_generate",
    "summary": "A video, while the caller waits",
    "openapi_extra": _body(
        response_format={"type": "string", "enum": ["url", "b64_json"], "default": "url"}
    ),
    "responses": {
        200: _answer(
            "The video, as a link or inline",
            {
                "type": "object",
                "required": ["model", "created", "videos"],
                "properties": {
                    "model": {"type": "string"},
                    "created": {"type": "integer"},
                    "videos": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {
                                "url": {"type": "string", "format": "uri"},
                                "b64_json": {"type": "string"},
                            },
                        },
                    },
                    "warnings": _WARNINGS,
                },
            },
            wire.videos(_MODEL, 1775090508, {"url": _VIDEO_URL}),
        ),
        400: _answer(
            "A parameter is wrong",
            _ERROR,
            wire.message(parameters.provider_error("duration: Input should be 5, 10 or 15")),
        ),
        **_REFUSALS,
    },
}
ENQUEUE: dict[str, Any] = {
    "operation_id": "oxen_enqueue",
    "summary": "Videos into the queue",
    "openapi_extra": _body(
        num_generations={
            "type": "integer",
            "minimum": 1,
            "maximum": parameters.MAX_GENERATIONS,
            "default": 1,
        },
        **{name: {"type": "string"} for name in wire.TARGETS},
    ),
    "responses": {
        200: _answer(
            "The generations are queued",
            {
                "type": "object",
                "required": ["generations"],
                "properties": {
                    "generations": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["generation_id", "status"],
                            "properties": {
                                "generation_id": {"type": "string", "format": "uuid"},
                                "status": {"type": "string", "enum": ["queued"]},
                            },
                        },
                    }
                },
            },
            wire.enqueued([_ID]),
        ),
        400: _answer(
            "Their number is wrong",
            _ERROR,
            wire.message("num_generations must be an integer between 1 and 12"),
        ),
        **_REFUSALS,
    },
}
LIST: dict[str, Any] = {
    "operation_id": "oxen_list",
    "summary": "The caller's generations",
    "responses": {
        200: _answer(
            "The active generations, or those with the given status",
            {
                "type": "object",
                "required": ["count", "generations"],
                "properties": {
                    "count": {"type": "integer"},
                    "generations": {"type": "array", "items": _GENERATION},
                },
            },
            wire.generations([_GENERATION_EXAMPLE]),
        ),
        400: _answer("A filter is wrong", _ERROR, wire.failure("invalid_params", "...")),
        **_FAILURES,
    },
}
ONE: dict[str, Any] = {
    "operation_id": "oxen_generation",
    "summary": "A generation",
    "responses": {
        200: _answer("The generation", _GENERATION, _GENERATION_EXAMPLE),
        **_FAILURES,
        404: _NOT_FOUND,
    },
}
CANCEL: dict[str, Any] = {
    "operation_id": "oxen_cancel",
    "summary": "Stop a generation",
    "responses": {
        200: _answer(
            "The generation is cancelled, or had already ended",
            {
                "type": "object",
                "required": ["status", "generation_id"],
                "properties": {
                    "status": {"type": "string", "enum": ["success"]},
                    "generation_id": {"type": "string", "format": "uuid"},
                },
            },
            wire.cancelled(_ID),
        ),
        **_FAILURES,
        404: _NOT_FOUND,
    },
}
_RECORD = {
    **_GENERATION,
    "required": [*_GENERATION["required"], "cost", "user_id", "username", "user_image"],
    "properties": {
        **_GENERATION["properties"],
        "cost": {"type": "string", "description": "USD."},
        "user_id": {"type": "string"},
        "username": {"type": "string"},
        "user_image": _NULLABLE_TEXT,
    },
}
_RECORD_EXAMPLE = {
    **_GENERATION_EXAMPLE,
    "cost": "0",
    "user_id": "alice",
    "username": "alice",
    "user_image": None,
}
HISTORY: dict[str, Any] = {
    "operation_id": "oxen_history",
    "summary": "All of the caller's generations",
    "responses": {
        200: _answer(
            "A page of them",
            {
                "type": "object",
                "required": [
                    *("count", "generations", "page_number", "page_size", "total_pages"),
                    *("total_entries", "total_cost"),
                ],
                "properties": {
                    "count": {"type": "integer"},
                    "page_number": {"type": "integer"},
                    "page_size": {"type": "integer"},
                    "total_pages": {"type": "integer"},
                    "total_entries": {"type": "integer"},
                    "generations": {"type": "array", "items": _RECORD},
                    "total_cost": {"type": "string", "description": "USD."},
                },
            },
            wire.history([_RECORD_EXAMPLE], 1, 50, 1, Decimal(0)),
        ),
        400: _answer("A filter is wrong", _ERROR, wire.failure("invalid_params", "...")),
        **_FAILURES,
    },
}
RECORD: dict[str, Any] = {
    "operation_id": "oxen_record",
    "summary": "A generation, with what it cost",
    "responses": {
        200: _answer(
            "The generation",
            {
                "type": "object",
                "required": ["status", "status_message", "generation"],
                "properties": {
                    "status": {"type": "string", "enum": ["success"]},
                    "status_message": {"type": "string"},
                    "generation": _RECORD,
                },
            },
            wire.found(_RECORD_EXAMPLE),
        ),
        **_FAILURES,
        404: _NOT_FOUND,
    },
}
EVENTS: dict[str, Any] = {
    "operation_id": "oxen_events",
    "summary": "Generations as they end",
    "response_class": EventSourceResponse,
    "responses": {
        200: {
            "description": "Server-sent events, without end. Cancelled generations send no event.",
            "content": {
                "text/event-stream": {
                    "schema": {"type": "string"},
                    "example": f"event: {wire.EVENT}\n"
                    f'data: {{"generation_id":"{_ID}","status":"succeeded","media_type":"video",'
                    f'"model":"{_MODEL}","url":"{_VIDEO_URL}"}}\n\n',
                }
            },
        },
        **_FAILURES,
    },
}
_MODEL_SCHEMA = {
    "type": "object",
    "required": ["id", "object", "endpoint", "request_schema", "json_request_schema"],
    "properties": {
        "id": {"type": "string"},
        "object": {"type": "string", "enum": ["model"]},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
        "endpoint": {"type": "string"},
        "pricing": {"type": "object"},
        "request_schema": {"type": "object"},
        "json_request_schema": {"type": "object"},
    },
    "additionalProperties": True,
}
_MODELS: dict[str, Any] = {
    "responses": {
        200: {
            "description": "Models",
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["object", "data"],
                        "properties": {
                            "object": {"type": "string", "enum": ["list"]},
                            "data": {"type": "array", "items": _MODEL_SCHEMA},
                        },
                    }
                }
            },
        },
        **_FAILURES,
    },
}
MODELS: dict[str, Any] = {"operation_id": "oxen_models", "summary": "The models", **_MODELS}
SEARCH: dict[str, Any] = {
    "operation_id": "oxen_search_models",
    "summary": "Models by a part of their name",
    "responses": {
        **_MODELS["responses"],
        400: _answer("`search` is missing", _ERROR, wire.failure("invalid_params", "...")),
    },
}
FEATURED: dict[str, Any] = {
    "operation_id": "oxen_featured_models",
    "summary": "The models to try",
    **_MODELS,
}
FAVORITES: dict[str, Any] = {
    "operation_id": "oxen_favorite_models",
    "summary": "The marked models",
    **_MODELS,
}
MODEL: dict[str, Any] = {
    "operation_id": "oxen_model",
    "summary": "A model and its schema",
    "responses": {
        200: {
            "description": "The model",
            "content": {"application/json": {"schema": _MODEL_SCHEMA}},
        },
        **_FAILURES,
        404: _answer("No such model", _ERROR, wire.model_not_found("bad-model-name")),
    },
}
