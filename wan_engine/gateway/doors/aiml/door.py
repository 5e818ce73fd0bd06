"""Defines the routes of the AI/ML API: create a generation, and poll it until it ends."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse

from wan_engine.gateway.door import Door
from wan_engine.gateway.doors.aiml import pages, wire
from wan_engine.gateway.doors.aiml.pages import PATH
from wan_engine.gateway.doors.context import Context, read_json
from wan_engine.gateway.job import DAY_SECONDS, NewJob
from wan_engine.gateway.refusals import Refusal, RefusalCode

NAME = "aiml"
OLDER_PATHS = (
    "/v2/generate/video/alibaba/generation",
    "/v1/video/generations",
    "/video/generations",
)
"""Paths from older pages of the API, with the same meaning. The first contains the vendor's
name."""

MODELS_PATHS = ("/v1/models", "/models")

LINK_SECONDS = int(DAY_SECONDS)


def door(context: Context) -> Door:
    """Return the door that serves the jobs of `context`."""
    router = APIRouter(tags=["AI/ML API"])
    routes = _Routes(context)
    for path in (PATH, *OLDER_PATHS):
        told = path == PATH
        add = router.add_api_route
        add(path, routes.create, methods=["POST"], include_in_schema=told, **pages.CREATE)
        add(path, routes.poll, methods=["GET"], include_in_schema=told, **pages.POLL)
    for path in MODELS_PATHS:
        told = path == MODELS_PATHS[0]
        add(path, routes.models, methods=["GET"], include_in_schema=told, **pages.MODELS)
    return Door(NAME, (PATH, *OLDER_PATHS, *MODELS_PATHS), router, refuse)


class _Routes:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def create(self, request: Request) -> JSONResponse:
        """Queues the video and answers at once, with the cost in credits."""
        body = await read_json(request)
        try:
            asked = wire.parse(body, self._context.serves)
        except wire.BodyError as error:
            raise Refusal("invalid_request", str(error)) from None
        new = NewJob(
            id=wire.new_id(),
            door=NAME,
            model=asked.model,
            owner=request.state.owner,
            request=asked.fields(),
            base_url=self._context.base_url(request),
        )
        await self._context.submit(request, new)
        cost = self._context.price(asked.size, asked.duration, wire.MODELS[asked.model])
        return JSONResponse(wire.created(new.id, cost))

    async def models(self) -> JSONResponse:
        """Lists the models of this server, by all their names."""
        served = [name for name, task in wire.MODELS.items() if self._context.serves(task)]
        return JSONResponse({"object": "list", "data": [wire.model(name) for name in served]})

    async def poll(
        self,
        request: Request,
        generation_id: str | None = Query(None, include_in_schema=False),
    ) -> JSONResponse:
        """Returns the status of a video, and its URL once it is finished. The URL is valid for 24
        hours."""
        if not generation_id:
            message = 'Query validation error\nRequired at "generation_id"'
            raise Refusal("invalid_request", message)
        job = await self._context.jobs.find(NAME, request.state.owner, generation_id)
        if job is None:
            raise Refusal("not_found", "You have no generation with this generation_id")
        done = job.state == "completed"
        url = self._context.links.url(job, LINK_SECONDS) if done else None
        return JSONResponse(wire.generation(job, url))


_MESSAGES: Mapping[RefusalCode, str] = {
    "unauthenticated": "This request requires a valid API key. The operator of "
    "this server issues keys.",
    "rate_limited": "Too Many Requests",
    "queue_full": "Too Many Requests",
}


def refuse(refusal: Refusal, path: str) -> JSONResponse:
    """Return this API's answer to a refusal of the gateway."""
    failure = wire.Failure(
        message=_MESSAGES.get(refusal.code, refusal.message),
        path=path,
        request_id=str(uuid.uuid4()),
        status=refusal.status,
        timestamp=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    )
    return JSONResponse(failure.body(), refusal.status)
