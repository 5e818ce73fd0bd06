"""Documents the routes of `/v1/videos` for OpenAPI: bodies, answers, and examples."""

from __future__ import annotations

from typing import Any

from starlette.responses import FileResponse

from wan_engine.gateway.doors.openai import parameters, wire
from wan_engine.schema import SECONDS, SEED_MAX

_ID = "video_5f0c3ae0a1d34d3e9a2f8f6f2f3b7c11"
_TEXT = {"type": "string"}
_INTEGER = {"type": "integer"}
_LENGTHS = [str(seconds) for seconds in SECONDS]

_FIELDS: dict[str, Any] = {
    "prompt": {**_TEXT, "description": "The scene to show."},
    "model": {**_TEXT, "maxLength": 64, "description": "Returned unchanged."},
    "seconds": {**_TEXT, "enum": _LENGTHS, "default": str(parameters.DEFAULT_SECONDS)},
    "size": {
        **_TEXT,
        "enum": list(parameters.SIZES),
        "default": parameters.DEFAULT_SIZE,
        "description": "With a picture, only a pixel budget: the picture gives the shape.",
    },
    "negative_prompt": {**_TEXT, "description": "What the video must not show."},
    "seed": {**_INTEGER, "minimum": -1, "maximum": SEED_MAX, "default": -1},
    "generate_sound": {"type": "boolean", "default": True},
    "keep_first_clip": {
        "type": "boolean",
        "default": True,
        "description": "Whether the video begins with `first_clip`; `seconds` is then the length "
        "of both.",
    },
    "shot_type": {**_TEXT, "enum": ["single", "multi"], "default": "single"},
    "enable_prompt_expansion": {"type": "boolean", "default": False},
    "enable_safety_checker": {"type": "boolean", "default": True},
}
_REFERENCE = {
    "type": "object",
    "required": ["image_url"],
    "properties": {"image_url": {**_TEXT, "description": "A link or a data URI."}},
}
_JSON = {
    "type": "object",
    "required": ["prompt"],
    "properties": {
        **_FIELDS,
        "input_reference": {**_REFERENCE, "description": "The first frame."},
        "last_image": {**_TEXT, "description": "A link or data URI of the last frame."},
        "first_clip": {
            **_TEXT,
            "description": "A link or data URI of a clip to continue: MP4 or MOV, 2 to 10 s.",
        },
        "references": {
            "type": "array",
            "items": _TEXT,
            "maxItems": 5,
            "description": "Links or data URIs of pictures and videos of one subject each.",
        },
        "audio_reference": {
            "type": "object",
            "required": ["audio_url"],
            "properties": {"audio_url": _TEXT},
        },
    },
}
_FORM = {
    "type": "object",
    "required": ["prompt"],
    "properties": {
        **_FIELDS,
        "input_reference": {
            **_TEXT,
            "format": "binary",
            "description": "A picture is the first frame, a video a reference.",
        },
        "last_image": {**_TEXT, "format": "binary", "description": "The last frame."},
        "first_clip": {**_TEXT, "format": "binary", "description": "A clip to continue."},
        "audio_reference": {**_TEXT, "description": 'JSON: {"audio_url": "..."}'},
    },
}
_SAMPLE = {
    "prompt": "A calico cat playing a piano on stage",
    "seconds": "8",
    "size": "1280x720",
    "input_reference": {"image_url": "https://example.com/cat.jpg"},
}
_NULLABLE_TEXT = {"type": ["string", "null"]}
_NULLABLE_INTEGER = {"type": ["integer", "null"]}
_VIDEO = {
    "type": "object",
    "required": ["id", "object", "model", "status", "progress", "created_at", "seconds", "size"],
    "properties": {
        "id": _TEXT,
        "object": {**_TEXT, "enum": ["video"]},
        "model": _TEXT,
        "status": {**_TEXT, "enum": list(dict.fromkeys(wire.STATUS.values()))},
        "progress": {**_INTEGER, "minimum": 0, "maximum": 100},
        "created_at": _INTEGER,
        "completed_at": _NULLABLE_INTEGER,
        "expires_at": _NULLABLE_INTEGER,
        "error": {
            "type": ["object", "null"],
            "properties": {"code": _TEXT, "message": _TEXT},
        },
        "prompt": _NULLABLE_TEXT,
        "seconds": _TEXT,
        "size": _TEXT,
        "remixed_from_video_id": _NULLABLE_TEXT,
        "warnings": {"type": "array", "items": _TEXT},
    },
}
_VIDEO_EXAMPLE = {
    "id": _ID,
    "object": "video",
    "model": parameters.MODELS["i2v"],
    "status": "queued",
    "progress": 0,
    "created_at": 1758941485,
    "completed_at": None,
    "expires_at": None,
    "error": None,
    "prompt": _SAMPLE["prompt"],
    "seconds": "8",
    "size": "1280x720",
    "remixed_from_video_id": None,
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": _NULLABLE_TEXT,
                "code": _NULLABLE_TEXT,
            },
        }
    },
}


def _answer(description: str, schema: dict[str, Any], example: object) -> dict[str, Any]:
    shown = {"schema": schema, "example": example}
    return {"description": description, "content": {"application/json": shown}}


def _refused(description: str, message: str, code: str | None = None) -> dict[str, Any]:
    return _answer(description, _ERROR, wire.failure(message, code=code))


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _FORM},
            "application/json": {"schema": _JSON, "example": _SAMPLE},
        },
    }
}
_FAILURES: dict[int | str, dict[str, Any]] = {
    401: _refused("No valid key", "Incorrect API key.", "invalid_api_key"),
    429: _refused("Too many requests, or the queue is full", "...", "rate_limit_exceeded"),
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: _refused("The request is wrong", 'field "prompt" is required', "invalid_value"),
    413: _refused("The body is too large", "..."),
    **_FAILURES,
}
_NOT_FOUND = _refused("The caller has no video with this id", "You have no video with this id")

CREATE: dict[str, Any] = {
    "operation_id": "openai_create",
    "summary": "Create a video",
    "openapi_extra": _BODY,
    "responses": {200: _answer("The video is queued", _VIDEO, _VIDEO_EXAMPLE), **_REFUSALS},
}
SYNC: dict[str, Any] = {
    "operation_id": "openai_sync",
    "summary": "A video, while the caller waits",
    "openapi_extra": _BODY,
    "response_class": FileResponse,
    "responses": {
        200: {
            "description": "The mp4",
            "content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}},
        },
        **_REFUSALS,
    },
}
LIST: dict[str, Any] = {
    "operation_id": "openai_list",
    "summary": "The caller's videos",
    "responses": {
        200: _answer(
            "A page of them",
            {
                "type": "object",
                "required": ["object", "data", "first_id", "last_id", "has_more"],
                "properties": {
                    "object": {**_TEXT, "enum": ["list"]},
                    "data": {"type": "array", "items": _VIDEO},
                    "first_id": _NULLABLE_TEXT,
                    "last_id": _NULLABLE_TEXT,
                    "has_more": {"type": "boolean"},
                },
            },
            {
                "object": "list",
                "data": [_VIDEO_EXAMPLE],
                "first_id": _ID,
                "last_id": _ID,
                "has_more": False,
            },
        ),
        400: _refused("A filter is wrong", "..."),
        404: _NOT_FOUND,
        **_FAILURES,
    },
}
ONE: dict[str, Any] = {
    "operation_id": "openai_video",
    "summary": "A video",
    "responses": {
        200: _answer("How far it is", _VIDEO, _VIDEO_EXAMPLE),
        404: _NOT_FOUND,
        **_FAILURES,
    },
}
DELETE: dict[str, Any] = {
    "operation_id": "openai_delete",
    "summary": "Cancel and delete a video",
    "responses": {
        200: _answer(
            "It is gone",
            {
                "type": "object",
                "required": ["id", "object", "deleted"],
                "properties": {
                    "id": _TEXT,
                    "object": {**_TEXT, "enum": ["video.deleted"]},
                    "deleted": {"type": "boolean"},
                },
            },
            wire.deleted(_ID),
        ),
        404: _NOT_FOUND,
        **_FAILURES,
    },
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
CONTENT: dict[str, Any] = {
    "operation_id": "openai_content",
    "summary": "The file of a video, or a picture of it",
    "response_class": FileResponse,
    "responses": {
        200: {
            "description": "The file",
            "content": {kind: _BINARY for kind in ("video/mp4", "image/webp", "image/jpeg")},
        },
        302: {"description": "A redirect to the clip in a bucket"},
        400: _refused("The variant is unknown", "..."),
        404: _NOT_FOUND,
        409: _refused("The video failed or is not ready", "The video is not ready yet: ..."),
        410: _refused("The clip is no longer stored", "..."),
        **_FAILURES,
    },
}
