"""Documents the AI/ML API's routes for OpenAPI: bodies, answers, and the documented examples."""

from __future__ import annotations

from typing import Any

from wan_engine.gateway.doors.aiml import wire
from wan_engine.gateway.openapi import without_null

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
        "id": {"type": "string", "description": "The ID of the generated video."},
        "status": {
            "type": "string",
            "enum": ["queued", "generating", "completed", "error"],
            "description": "The current status of the generation task.",
        },
        "video": {
            "type": "object",
            "nullable": True,
            "required": ["url"],
            "properties": {
                "url": {
                    "type": "string",
                    "format": "uri",
                    "description": "The URL where the file can be downloaded from.",
                }
            },
        },
        "warnings": {
            "type": "array",
            "items": {"type": "string"},
            "description": "What the server could not do as asked. Not on the hosted page.",
        },
        "error": {
            "type": "object",
            "nullable": True,
            "required": ["name", "message"],
            "properties": {"name": {"type": "string"}, "message": {"type": "string"}},
            "description": "Description of the error, if any.",
        },
        "meta": {
            "type": "object",
            "nullable": True,
            "properties": {
                "usage": {
                    "type": "object",
                    "nullable": True,
                    "required": ["credits_used"],
                    "properties": {
                        "credits_used": {
                            "type": "number",
                            "description": "The number of tokens consumed during generation.",
                        }
                    },
                }
            },
            "description": "Additional details about the generation.",
        },
    },
}
_GENERATION_REQUEST = {
    "type": "object",
    "title": "alibaba/wan-2-6-i2v",
    "required": ["model", "prompt", "image_url"],
    "properties": {
        "model": {"type": "string", "enum": ["alibaba/wan-2-6-i2v"]},
        "prompt": {
            "type": "string",
            "description": "The text description of the scene, subject, or action to generate in "
            "the video.",
        },
        "image_url": {
            "type": "string",
            "format": "uri",
            "description": "A direct link to an online image or a Base64-encoded local image that "
            "will serve as the visual base or the first frame for the video.",
        },
        "audio_url": {
            "type": "string",
            "format": "uri",
            "description": "The URL of the audio file. The model will use this audio to generate "
            "the video.",
        },
        "resolution": {
            "type": "string",
            "enum": ["720p", "1080p"],
            "default": "1080p",
            "description": "An enumeration where the short side of the video frame determines the "
            "resolution.",
        },
        "duration": {
            "type": "integer",
            "description": "The length of the output video in seconds.",
            "enum": [5, 10, 15],
            "default": "10",
        },
        "negative_prompt": {
            "type": "string",
            "description": "The description of elements to avoid in the generated video.",
        },
        "shot_type": {
            "type": "string",
            "enum": ["single", "multi"],
            "default": "single",
            "description": "Specifies the shot type of the generated video, that is, whether the "
            "video consists of a single continuous shot or multiple switched shots.\nThis "
            "parameter takes effect only when \"prompt_extend\" is set to 'true':\n- single: "
            "(default) Outputs a single-shot video.\n- multi: Outputs a multi-shot video.",
        },
        "generate_audio": {
            "type": "boolean",
            "default": True,
            "description": "Specifies whether to automatically add audio to the generated video."
            "\nThis parameter takes effect only when 'audio_url' is not provided.",
        },
        "seed": {
            "type": "integer",
            "description": "Varying the seed integer is a way to get different results for the "
            "same other request parameters. Using the same value for an identical request will "
            "produce similar results. If unspecified, a random number is chosen.",
        },
        "enhance_prompt": {
            "type": "boolean",
            "default": True,
            "description": "Whether to enable prompt expansion.",
        },
    },
}
"""The properties that the page publishes for its own model, word for word. `wire.GenerationRequest`
reads the body, and also accepts the model's older names."""


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
                            _GENERATION_REQUEST,
                            without_null(wire.ReferenceGenerationRequest.model_json_schema()),
                        ]
                    },
                    "example": {
                        "model": "alibaba/wan-2-6-i2v",
                        "prompt": "Mona Lisa puts on glasses with her hands.",
                        "image_url": "https://raw.githubusercontent.com/aimlapi/api-docs/main/"
                        "reference-files/mona_lisa_extended.jpg",
                        "duration": 5,
                    },
                }
            },
        }
    },
    "responses": {
        200: _answer(
            "The video is queued",
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
    # The route accepts a request without the ID, so that the refusal is in this API's words.
    "openapi_extra": {
        "parameters": [
            {
                "name": "generation_id",
                "in": "query",
                "required": True,
                "description": "The `id` in the answer to the POST.",
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
        404: _answer("The caller has no generation with this id", _ERROR_SCHEMA),
    },
}

_MODEL_SCHEMA = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by", "type", "info", "features", "endpoints"],
    "properties": {
        "id": {"type": "string"},
        "object": {"type": "string", "enum": ["model"]},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
        "type": {"type": "string", "enum": ["video"]},
        "info": {"type": "object"},
        "features": {"type": "array", "items": {"type": "string"}},
        "endpoints": {"type": "array", "items": {"type": "string"}},
    },
}
MODELS: dict[str, Any] = {
    "operation_id": "aiml_models",
    "summary": "The models",
    "responses": {
        200: _answer(
            "All models that this server has",
            {
                "type": "object",
                "required": ["object", "data"],
                "properties": {
                    "object": {"type": "string", "enum": ["list"]},
                    "data": {"type": "array", "items": _MODEL_SCHEMA},
                },
            },
            {"object": "list", "data": [wire.model("alibaba/wan-2-6-i2v")]},
        ),
        401: _FAILURES[401],
        429: _FAILURES[429],
    },
}
