"""Documents DashScope's routes for OpenAPI: bodies, answers, and the documented examples."""

from __future__ import annotations

from typing import Any

from wan_engine.gateway.doors.dashscope.parameters import MODELS
from wan_engine.gateway.doors.dashscope.wire import STATUS

_ID = "0385dc79-5ff8-4d82-bcb6-6aa0a3b2d2a2"
_REQUEST_ID = "4909100c-7b5a-9f92-bfe5-2d5b5b1d0a6c"
_TEXT = {"type": "string"}
_INTEGER = {"type": "integer"}
_URLS = {"type": "array", "items": {"type": "string", "format": "uri"}, "maxItems": 5}

_INPUT = {
    "type": "object",
    "properties": {
        "prompt": {**_TEXT, "description": "Cut to 1500 characters."},
        "negative_prompt": {**_TEXT, "description": "Cut to 500 characters."},
        "img_url": {
            **_TEXT,
            "description": "The first frame, for `i2v`: a link (http, https), data URI or base64 "
            "of JPEG, PNG, BMP or WEBP.",
        },
        "last_frame_url": {**_TEXT, "description": "The last frame."},
        "audio_url": {**_TEXT, "description": "The sound, WAV or MP3."},
        "reference_urls": {
            **_URLS,
            "description": "For `r2v`: pictures and videos of one subject each. The first is "
            "`character1`.",
        },
        "media": {
            "type": "array",
            "description": "The same media in the format of 2.7. The clip continues a "
            "`first_clip`, MP4 or MOV of 2 to 10 seconds: it begins the video, and `duration` is "
            "the length of both.",
            "items": {
                "type": "object",
                "required": ["type", "url"],
                "properties": {
                    "type": {
                        **_TEXT,
                        "enum": [
                            *("first_frame", "last_frame", "first_clip", "driving_audio"),
                            *("reference_image", "reference_video"),
                        ],
                    },
                    "url": _TEXT,
                },
            },
        },
    },
}
_PARAMETERS = {
    "type": "object",
    "properties": {
        "resolution": {**_TEXT, "enum": ["720P", "1080P"], "default": "1080P"},
        "size": {**_TEXT, "description": "For `r2v` and `t2v`.", "examples": ["1280*720"]},
        "ratio": {
            **_TEXT,
            "enum": ["16:9", "9:16", "1:1", "4:3", "3:4"],
            "description": "For `r2v` and `t2v`, with `resolution`.",
        },
        "duration": {**_INTEGER, "minimum": 2, "maximum": 15, "default": 5},
        "shot_type": {**_TEXT, "enum": ["single", "multi"], "default": "single"},
        "prompt_extend": {"type": "boolean", "default": True},
        "audio": {
            "type": "boolean",
            "default": True,
            "description": "False: no sound, not even that of `audio_url`.",
        },
        "seed": {**_INTEGER, "minimum": 0, "maximum": 2147483647},
        "watermark": {
            "type": "boolean",
            "default": False,
            "description": "Ignored: this server draws none.",
        },
    },
}
_BODY = {
    "type": "object",
    "required": ["model", "input"],
    "properties": {
        "model": {**_TEXT, "enum": list(MODELS)},
        "input": _INPUT,
        "parameters": _PARAMETERS,
    },
}
_SAMPLE = {
    "model": "wan2.6-i2v",
    "input": {
        "prompt": "The cat runs across the grass.",
        "img_url": "https://cdn.translate.alibaba.com/r/wanx-demo-1.png",
    },
    "parameters": {"resolution": "720P", "duration": 10, "prompt_extend": True},
}
_ERROR = {
    "type": "object",
    "required": ["code", "message", "request_id"],
    "properties": {"code": _TEXT, "message": _TEXT, "request_id": _TEXT},
}
_TASK = {
    "type": "object",
    "required": ["request_id", "output"],
    "properties": {
        "request_id": _TEXT,
        "output": {
            "type": "object",
            "required": ["task_id", "task_status"],
            "properties": {
                "task_id": _TEXT,
                "task_status": {
                    **_TEXT,
                    "enum": [*dict.fromkeys(STATUS.values()), "UNKNOWN"],
                },
                "submit_time": {**_TEXT, "description": "UTC."},
                "scheduled_time": _TEXT,
                "end_time": _TEXT,
                "orig_prompt": _TEXT,
                "video_url": {**_TEXT, "description": "Good for 24 hours."},
                "code": _TEXT,
                "message": _TEXT,
                "warnings": {"type": "array", "items": _TEXT},
            },
        },
        "usage": {
            "type": "object",
            "properties": {
                "duration": _INTEGER,
                "input_video_duration": _INTEGER,
                "output_video_duration": _INTEGER,
                "video_count": _INTEGER,
                "SR": {**_INTEGER, "enum": [720, 1080]},
                "size": _TEXT,
                "ratio": _TEXT,
                "audio": {"type": "boolean"},
            },
        },
    },
}


def _answer(description: str, schema: dict[str, Any], example: object) -> dict[str, Any]:
    shown = {"schema": schema, "example": example}
    return {"description": description, "content": {"application/json": shown}}


def _refused(description: str, code: str, message: str) -> dict[str, Any]:
    example = {"code": code, "message": message, "request_id": _REQUEST_ID}
    return _answer(description, _ERROR, example)


_FAILURES: dict[int | str, dict[str, Any]] = {
    401: _refused("No valid key", "InvalidApiKey", "No API-key provided."),
    429: _refused("Too many requests, or the queue is full", "Throttling.RateQuota", "..."),
}
CREATE: dict[str, Any] = {
    "operation_id": "dashscope_create",
    "summary": "Create a task",
    "openapi_extra": {
        "parameters": [
            {
                "name": "X-DashScope-Async",
                "in": "header",
                "required": True,
                "schema": {"type": "string", "enum": ["enable"]},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _BODY, "example": _SAMPLE}},
        },
    },
    "responses": {
        200: _answer(
            "The task is queued",
            _TASK,
            {
                "output": {"task_status": "PENDING", "task_id": _ID},
                "request_id": _REQUEST_ID,
            },
        ),
        400: _refused("The request is wrong", "InvalidParameter", "Field required: input.img_url"),
        403: _refused(
            "The header is missing",
            "AccessDenied",
            "current user api does not support synchronous calls.",
        ),
        413: _refused("The body is too large", "BadRequest.TooLarge", "..."),
        **_FAILURES,
    },
}
ONE: dict[str, Any] = {
    "operation_id": "dashscope_task",
    "summary": "Ask for a task",
    "responses": {
        200: _answer(
            "How far it is",
            _TASK,
            {
                "request_id": _REQUEST_ID,
                "output": {
                    "task_id": _ID,
                    "task_status": "SUCCEEDED",
                    "submit_time": "2025-09-25 11:07:28.590",
                    "scheduled_time": "2025-09-25 11:07:35.349",
                    "end_time": "2025-09-25 11:17:11.650",
                    "orig_prompt": _SAMPLE["input"]["prompt"],  # type: ignore[index]
                    "video_url": "https://media.example.com/video.mp4",
                },
                "usage": {
                    "duration": 10,
                    "input_video_duration": 0,
                    "output_video_duration": 10,
                    "video_count": 1,
                    "SR": 720,
                },
            },
        ),
        **_FAILURES,
    },
}
LIST: dict[str, Any] = {
    "operation_id": "dashscope_tasks",
    "summary": "The caller's tasks",
    "responses": {
        200: _answer(
            "A page of them",
            {
                "type": "object",
                "required": ["request_id", "data", "page_no", "page_size", "total", "total_page"],
                "properties": {
                    "request_id": _TEXT,
                    "data": {"type": "array", "items": {"type": "object"}},
                    "page_no": _INTEGER,
                    "page_size": _INTEGER,
                    "total": _INTEGER,
                    "total_page": _INTEGER,
                },
            },
            {
                "request_id": _REQUEST_ID,
                "data": [
                    {
                        "task_id": _ID,
                        "status": "RUNNING",
                        "model_name": "wan2.6-i2v",
                        "gmt_create": 1758769648590,
                        "start_time": 1758769655349,
                        "end_time": None,
                    }
                ],
                "page_no": 1,
                "page_size": 10,
                "total": 1,
                "total_page": 1,
            },
        ),
        400: _refused("A filter is wrong", "InvalidParameter", "..."),
        **_FAILURES,
    },
}
CANCEL: dict[str, Any] = {
    "operation_id": "dashscope_cancel",
    "summary": "Cancel a task that is queued",
    "responses": {
        200: _answer(
            "It is stopped",
            {"type": "object", "required": ["request_id"], "properties": {"request_id": _TEXT}},
            {"request_id": _REQUEST_ID},
        ),
        400: _refused(
            "It does not wait",
            "UnsupportedOperation",
            "Failed to cancel the task, please confirm if the task is in PENDING status.",
        ),
        **_FAILURES,
    },
}
