"""The AI/ML API's routes: a generation is created, and asked for until it has ended."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse

from wan_engine.gateway.aiml import wire
from wan_engine.gateway.context import Context, Door, read_json
from wan_engine.gateway.job import DAY_SECONDS, NewJob
from wan_engine.gateway.problems import Problem

NAME = "aiml"
PATH = "/v2/video/generations"
OLDER_PATHS = (
    "/v2/generate/video/alibaba/generation",
    "/v1/video/generations",
    "/video/generations",
)
"""Paths of older pages, the first with the vendor's name in it, that mean the same."""

LINK_SECONDS = int(DAY_SECONDS)


def door(context: Context) -> Door:
    """The door on `context`'s jobs."""
    router = APIRouter(tags=["AI/ML API"])
    routes = _Routes(context)
    for path in (PATH, *OLDER_PATHS):
        shown = {"include_in_schema": path == PATH}
        router.add_api_route(
            path, routes.create, methods=["POST"], summary="Create a video", **_CREATE, **shown
        )
        router.add_api_route(
            path, routes.poll, methods=["GET"], summary="Ask for a video", **_POLL, **shown
        )
    return Door(NAME, (PATH, *OLDER_PATHS), router, refuse)


class _Routes:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def create(self, request: Request) -> JSONResponse:
        """Puts the video into the queue and answers at once, with what it costs in credits."""
        body = await read_json(request)
        try:
            asked = wire.parse(body)
        except wire.BodyError as error:
            raise Problem("invalid_request", str(error)) from None
        # `generate_audio` is only checked: this engine has no model that makes sound, so without
        # `audio_url` every clip is as silent as `false` asks for.
        new = NewJob(
            id=wire.new_id(),
            door=NAME,
            model=asked.model,
            owner=request.state.owner,
            request=asked.fields(),
            base_url=self._context.base_url(request),
        )
        await self._context.jobs.submit(new)
        cost = self._context.price(asked.size, asked.duration)
        return JSONResponse(wire.created(new.id, cost))

    async def poll(
        self,
        request: Request,
        generation_id: str | None = Query(None, description="The `id` of the answer to the POST."),
    ) -> JSONResponse:
        """How far a video is, and where it is once it is finished. The link is good for 24 h."""
        if not generation_id:
            message = 'Query validation error\nRequired at "generation_id"'
            raise Problem("invalid_request", message)
        job = await self._context.jobs.find(NAME, request.state.owner, generation_id)
        if job is None:
            raise Problem("not_found", "No generation of yours has this generation_id")
        done = job.state == "completed"
        url = self._context.links.url(job, LINK_SECONDS) if done else None
        return JSONResponse(wire.generation(job, url))


_MESSAGES = {
    "unauthenticated": "This request requires a valid API key. Keys are given by whoever runs "
    "this server.",
    "rate_limited": "Too Many Requests",
    "queue_full": "Too Many Requests",
}


def refuse(problem: Problem, request: Request) -> JSONResponse:
    """This API's answer to what the gateway refuses."""
    failure = wire.Failure(
        message=_MESSAGES.get(problem.code, problem.message),
        path=request.url.path,
        request_id=str(uuid.uuid4()),
        status=problem.status,
        timestamp=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    )
    return JSONResponse(failure.body(), problem.status)


# --- OpenAPI -------------------------------------------------------------------------------------

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
_CREATE: dict[str, Any] = {
    "operation_id": "aiml_create",
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": wire.GenerationRequest.model_json_schema(),
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
_POLL: dict[str, Any] = {
    "operation_id": "aiml_poll",
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
