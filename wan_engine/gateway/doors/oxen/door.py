"""Defines Oxen's routes: a video while the caller waits, the queue, its events, and the models."""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Query, Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import JSONResponse, Response

from wan_engine.gateway.door import Door
from wan_engine.gateway.doors.context import Context, read_json
from wan_engine.gateway.doors.job_lists import Lists
from wan_engine.gateway.doors.oxen import models, pages, parameters, wire
from wan_engine.gateway.excerpt import excerpt
from wan_engine.gateway.job import Job, NewJob, State
from wan_engine.gateway.refusals import Refusal, RefusalCode
from wan_engine.pricing import HOSTED_PRICES, price_a_second

NAME = "oxen"
PREFIXES = ("/api/ai", "/api/events")

KEEP_ALIVE_SECONDS = 15.0
"""How long the stream of events is silent at most."""

_WAIT_SECONDS = 2.0  # between looks at whether the caller of the sync route is still there
_WAITED_FOR = "waited_for"
_KINDS: Mapping[RefusalCode, str] = {
    "unauthenticated": "unauthenticated",
    "not_found": "resource_not_found",
    "gone": "resource_not_found",
    "rate_limited": "too_many_requests",
    "queue_full": "too_many_requests",
    "unavailable": "unknown_error",
    "internal_error": "unknown_error",
}


def door(context: Context) -> Door:
    """The door on `context`'s jobs."""
    router = APIRouter(tags=["Oxen"])
    video, queue, model = _Videos(context), _Queue(context), _Models(context)
    add = router.add_api_route
    add("/api/ai/videos/generate", video.generate, methods=["POST"], **pages.GENERATE)
    add("/api/ai/queue", queue.enqueue, methods=["POST"], **pages.ENQUEUE)
    add("/api/ai/queue", queue.all, methods=["GET"], **pages.LIST)
    add("/api/ai/queue/{generation_id}", queue.one, methods=["GET"], **pages.ONE)
    add("/api/ai/queue/{generation_id}", queue.cancel, methods=["DELETE"], **pages.CANCEL)
    add("/api/events", queue.events, methods=["GET"], **pages.EVENTS)
    add("/api/ai/models", model.all, methods=["GET"], **pages.MODELS)
    add("/api/ai/models/search", model.all, methods=["GET"], include_in_schema=False)
    add("/api/ai/models/{model_id}", model.one, methods=["GET"], **pages.MODEL)
    return Door(NAME, PREFIXES, router, refuse)


def refuse(refusal: Refusal, _path: str) -> JSONResponse:
    """This API's answer to what the gateway refuses."""
    kind = _KINDS.get(refusal.code, "invalid_params")
    detail = None if kind in ("unauthenticated", "resource_not_found") else refusal.message
    return JSONResponse(wire.failure(kind, detail), refusal.status)


class _Refused(Exception):
    """An answer with a status of 400 or more in the format of models."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(status)
        self.answer = JSONResponse(body, status)


async def _asked(context: Context, request: Request) -> tuple[models.Model, dict[str, Any]]:
    """The model and the body of a request. Raises `Refusal` and `_Refused`."""
    body = await read_json(request)
    if not isinstance(body, dict):
        raise Refusal("invalid_request", "The body must be a JSON object")
    name = body.get("model")
    if name is None:
        raise Refusal("invalid_request", "model: Field required")
    model = _served(context, name) if isinstance(name, str) else None
    if model is None:
        raise _Refused(404, wire.model_not_found(name))
    return model, body


def _served(context: Context, name: str) -> models.Model | None:
    """The model of this name, where what it does is served here."""
    model = models.MODELS.get(name)
    return model if model is not None and context.serves(model.task) else None


class _Videos:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def generate(self, request: Request) -> Response:
        """Renders a video while the caller waits. A caller that goes away ends the work, as nobody
        else knows of it."""
        try:
            model, body = await _asked(self._context, request)
            given = parameters.response_format(body)
            wanted = model.parameters.parse(body)
        except _Refused as refused:
            return refused.answer
        except parameters.ProviderError as error:
            return JSONResponse(wire.message(str(error)), 400)
        new = NewJob(
            id=str(uuid.uuid4()),
            door=NAME,
            model=model.name,
            owner=request.state.owner,
            request=wanted.fields(),
            base_url=self._context.base_url(request),
            payload={_WAITED_FOR: True},
        )
        (job,) = await self._context.submit(request, new)
        job = await self._ended(job, request)
        if job.state != "completed":
            why = job.error or "The generation was stopped"
            status = 400 if job.callers_fault else 500
            sentence = parameters.provider_error(why, 422 if job.callers_fault else 500)
            return JSONResponse(wire.message(sentence), status)
        return JSONResponse(
            wire.videos(model.name, job.created_ms // 1000, await self._video(job, given))
        )

    async def _ended(self, job: Job, request: Request) -> Job:
        """The job once it has ended, or as it is when the gateway is about to."""
        jobs = self._context.jobs
        while not (job := await jobs.wait(job, _WAIT_SECONDS)).final:
            closed = jobs.closed
            if closed or await request.is_disconnected():
                job = await jobs.cancel(job)
            if closed and not job.final:
                raise Refusal("unavailable", "The server is about to end, please ask again")
        return job

    async def _video(self, job: Job, given: parameters.ResponseFormat) -> dict[str, str]:
        if given == "url":
            return {"url": self._context.links.url(job)}
        data = await self._context.links.read(job)
        return {"b64_json": await asyncio.to_thread(lambda: base64.b64encode(data).decode())}


class _Queue:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._lists = Lists()

    async def enqueue(self, request: Request) -> JSONResponse:
        """Puts one to four videos into the queue. Only the model and their number are checked now;
        wrong parameters make generations that have failed."""
        try:
            model, body = await _asked(self._context, request)
        except _Refused as refused:
            return refused.answer
        number = parameters.number_of_generations(body)
        if number is None:
            sentence = (
                f"num_generations must be an integer between 1 and {parameters.MAX_GENERATIONS}"
            )
            return JSONResponse(wire.message(sentence), 400)
        refused_for, requests = None, [dict[str, Any]()] * number
        try:
            wanted = model.parameters.parse(body)
            requests = [wanted.fields(count) for count in range(number)]
        except parameters.ProviderError as error:
            refused_for = str(error)
        shown = excerpt({key: value for key, value in body.items() if key != _WAITED_FOR})
        new = [
            NewJob(
                id=str(uuid.uuid4()),
                door=NAME,
                model=model.name,
                owner=request.state.owner,
                request=fields,
                base_url=self._context.base_url(request),
                payload=shown,
                refused=refused_for,
            )
            for fields in requests
        ]
        await self._context.submit(request, *new)
        return JSONResponse(wire.enqueued([one.id for one in new]))

    async def all(
        self,
        request: Request,
        status: str | None = Query(None, description="Only these; else those that go on."),
        model: str | None = Query(None),
        media_type: str | None = Query(None, description="`video` or `image`."),
        namespace: str | None = Query(None, description="Only those of this `target_namespace`."),
        repo: str | None = Query(None, description="No repositories here: matches nothing."),
        folder: str | None = Query(None, description="No repositories here: matches nothing."),
    ) -> Response:
        """The caller's generations, the newest first."""
        wanted, owner = _states(status), request.state.owner
        elsewhere = repo or folder or media_type not in (None, "", "video")
        if elsewhere or (model and model not in models.MODELS):
            return JSONResponse(wire.generations([]))

        def shown(job: Job) -> dict[str, Any] | None:
            wanted = namespace in (None, "", job.payload.get("target_namespace", owner))
            return self._shown(job) if wanted and _in_queue(job) else None

        found = self._context.jobs.of_owner(NAME, owner, states=wanted, model=model or None)
        bodies = await self._lists.encoded(owner, found, shown)
        return Response(wire.listed(bodies), media_type="application/json")

    async def one(self, request: Request, generation_id: str) -> JSONResponse:
        """How far a generation is, what was submitted, and where the video is once finished."""
        return JSONResponse(self._shown(await self._found(request, generation_id)))

    async def cancel(self, request: Request, generation_id: str) -> JSONResponse:
        """Stops a generation that is queued or runs; no effect on one that has ended."""
        job = await self._found(request, generation_id)
        await self._context.jobs.cancel(job)
        return JSONResponse(wire.cancelled(job.id))

    async def events(self, request: Request) -> EventSourceResponse:
        """A stream of the caller's generations as they end, the last minute's first."""
        return EventSourceResponse(
            self._stream(self._context.jobs.events(request.state.owner)),
            ping=KEEP_ALIVE_SECONDS,
            ping_message_factory=lambda: ServerSentEvent(comment="keep-alive", sep="\n"),
            sep="\n",
        )

    async def _stream(self, events: AsyncGenerator[Job]) -> AsyncIterator[bytes]:
        async with aclosing(events) as changes:
            async for job in changes:
                ours = job.door == NAME and _in_queue(job)
                if ours and (event := wire.event(job, self._url(job))) is not None:
                    yield event + wire.PADDING

    async def _found(self, request: Request, generation_id: str) -> Job:
        job = await self._context.jobs.find(NAME, request.state.owner, generation_id)
        if job is None or not _in_queue(job):
            raise Refusal("not_found", "The generation does not exist")
        return job

    def _shown(self, job: Job) -> dict[str, Any]:
        return wire.generation(job, self._url(job))

    def _url(self, job: Job) -> str | None:
        return self._context.links.url(job) if job.state == "completed" else None


def _in_queue(job: Job) -> bool:
    """Whether it came by the queue: who waits for the sync route knows no id."""
    return _WAITED_FOR not in job.payload


def _states(status: str | None) -> list[State]:
    """The states that a status stands for; those that go on without one. Raises `Refusal`."""
    names = (status,) if status else wire.ACTIVE
    found = [state for state, name in wire.STATUS.items() if name in names]
    if not found:
        allowed = ", ".join(dict.fromkeys(wire.STATUS.values()))
        raise Refusal("invalid_request", f"status must be one of {allowed}")
    return found


class _Models:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._created = int(time.time())

    async def all(self, search: str = Query("", description="A part of a name.")) -> JSONResponse:
        """The models of this door that are configured here."""
        served = [model for model in models.found(search) if self._context.serves(model.task)]
        data = [self._described(model) for model in served]
        return JSONResponse({"object": "list", "data": data})

    async def one(self, model_id: str) -> JSONResponse:
        """One model with the schema of its parameters, under both of the names that it has had."""
        model = _served(self._context, model_id)
        if model is None:
            return JSONResponse(wire.model_not_found(model_id), 404)
        return JSONResponse(self._described(model))

    def _described(self, model: models.Model) -> dict[str, Any]:
        prices = self._context.settings.prices
        rates = {size: price_a_second(size, prices, model.task) for size in HOSTED_PRICES}
        return models.described(model, self._created, rates)
