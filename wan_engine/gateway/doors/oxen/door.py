"""Defines Oxen's routes: a synchronous video, the queue, its events, and the models."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from decimal import Decimal
from typing import Any

from fastapi import APIRouter, Query, Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import JSONResponse, Response

from wan_engine.gateway.door import Door
from wan_engine.gateway.doors.context import Context, read_json
from wan_engine.gateway.doors.job_lists import Lists
from wan_engine.gateway.doors.oxen import models, pages, parameters, wire
from wan_engine.gateway.doors.oxen.wire import TARGETS, WAITED_FOR
from wan_engine.gateway.excerpt import excerpt
from wan_engine.gateway.job import Job, NewJob, State
from wan_engine.gateway.refusals import Refusal, RefusalCode
from wan_engine.schema.pricing import HOSTED_PRICES, price_a_second

NAME = "oxen"
PREFIXES = ("/api/ai", "/api/events")

_PROMPT_CHARACTERS = 8000  # the stored part of a prompt, for answers; the engine accepts fewer

KEEP_ALIVE_SECONDS = 15.0
"""The longest silence of the event stream."""

_PAGE_MOST = _PAGES_MOST = 1000
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
    """Return the door that serves the jobs of `context`."""
    router = APIRouter(tags=["Oxen"])
    video, queue, model = _Videos(context), _Queue(context), _Models(context)
    history = _History(context)
    add = router.add_api_route
    add("/api/ai/videos/generate", video.generate, methods=["POST"], **pages.GENERATE)
    add("/api/ai/queue", queue.enqueue, methods=["POST"], **pages.ENQUEUE)
    add("/api/ai/queue", queue.all, methods=["GET"], **pages.LIST)
    add("/api/ai/queue/{generation_id}", queue.one, methods=["GET"], **pages.ONE)
    add("/api/ai/queue/{generation_id}", queue.cancel, methods=["DELETE"], **pages.CANCEL)
    add("/api/ai/generations", history.all, methods=["GET"], **pages.HISTORY)
    add("/api/ai/generations/{generation_id}", history.one, methods=["GET"], **pages.RECORD)
    add("/api/events", queue.events, methods=["GET"], **pages.EVENTS)
    add("/api/ai/models", model.all, methods=["GET"], **pages.MODELS)
    add("/api/ai/models/search", model.search, methods=["GET"], **pages.SEARCH)
    add("/api/ai/models/featured", model.featured, methods=["GET"], **pages.FEATURED)
    add("/api/ai/models/favorites", model.favorites, methods=["GET"], **pages.FAVORITES)
    add("/api/ai/models/{model_id}", model.one, methods=["GET"], **pages.MODEL)
    return Door(NAME, PREFIXES, router, refuse)


def refuse(refusal: Refusal, _path: str) -> JSONResponse:
    """Return this API's answer to a refusal of the gateway."""
    kind = _KINDS.get(refusal.code, "invalid_params")
    detail = None if kind in ("unauthenticated", "resource_not_found") else refusal.message
    return JSONResponse(wire.failure(kind, detail), refusal.status)


class _Refused(Exception):
    """Raised for an answer with a status of 400 or more in the error format of models."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(status)
        self.answer = JSONResponse(body, status)


async def _asked(context: Context, request: Request) -> tuple[models.Model, dict[str, Any]]:
    """Read the model and the body of a request. Raises `Refusal` and `_Refused`."""
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
    """The model of this name, if this server has a model for its task."""
    model = models.MODELS.get(name)
    return model if model is not None and context.serves(model.task) else None


class _Videos:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def generate(self, request: Request) -> Response:
        """Renders a video while the caller waits. If the caller disconnects, the job is cancelled,
        because nobody else knows its id."""
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
            payload={**_kept(body), WAITED_FOR: True},
        )
        (job,) = await self._context.submit(request, new)
        job = await self._context.ended(job, request)
        if job.state != "completed":
            why = job.error or "The generation was stopped"
            status = 400 if job.callers_fault else 500
            sentence = parameters.provider_error(why, 422 if job.callers_fault else 500)
            return JSONResponse(wire.message(sentence), status)
        return JSONResponse(
            wire.videos(
                model.name, job.created_ms // 1000, await self._video(job, given), job.warnings
            )
        )

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
        """Queues one to twelve videos. Only the model and the number are checked now; wrong
        parameters create generations that have failed."""
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
        shown = _kept(body)
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
        named = {name: shown[name] for name in TARGETS if shown.get(name) is not None}
        return JSONResponse(wire.enqueued([one.id for one in new], named))

    async def all(
        self,
        request: Request,
        status: str | None = Query(None, description="Active generations if not given."),
        model: str | None = Query(None),
        media_type: str | None = Query(None, description="`video` or `image`."),
        namespace: str | None = Query(None, description="Only this `target_namespace`."),
        repo: str | None = Query(None, description="Only this `target_repo`."),
        folder: str | None = Query(None, description="Only this `target_directory`."),
    ) -> Response:
        """Lists the caller's generations, newest first."""
        wanted, owner = _states(status), request.state.owner
        if media_type not in (None, "", "video") or (model and model not in models.MODELS):
            return JSONResponse(wire.generations([]))
        is_there = _is_at(namespace, repo, folder)

        def shown(job: Job) -> dict[str, Any] | None:
            return self._shown(job) if _in_queue(job) and is_there(job) else None

        found = self._context.jobs.of_owner(NAME, owner, states=wanted, model=model or None)
        bodies = await self._lists.encoded(owner, found, shown)
        return Response(wire.listed(bodies), media_type="application/json")

    async def one(self, request: Request, generation_id: str) -> JSONResponse:
        """Returns the status of a generation, the submitted parameters, and the URL of the video
        once it is finished."""
        return JSONResponse(self._shown(await self._found(request, generation_id)))

    async def cancel(self, request: Request, generation_id: str) -> JSONResponse:
        """Cancels a generation that is queued or running. A generation that has ended is
        unchanged."""
        job = await self._found(request, generation_id)
        await self._context.jobs.cancel(job)
        return JSONResponse(wire.cancelled(job.id))

    async def events(self, request: Request) -> EventSourceResponse:
        """Streams the caller's generations as they end, beginning with those of the last minute."""
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
                if ours and (event := wire.event(job, _url(self._context, job))) is not None:
                    yield event + wire.PADDING

    async def _found(self, request: Request, generation_id: str) -> Job:
        job = await self._context.jobs.find(NAME, request.state.owner, generation_id)
        if job is None or not _in_queue(job):
            raise Refusal("not_found", "The generation does not exist")
        return job

    def _shown(self, job: Job) -> dict[str, Any]:
        return wire.generation(job, _url(self._context, job))


def _url(context: Context, job: Job) -> str | None:
    return context.links.url(job) if job.state == "completed" else None


def _in_queue(job: Job) -> bool:
    """Whether the job came through the queue. A caller of the sync route knows no id."""
    return WAITED_FOR not in job.payload


def _is_at(*wanted: str | None) -> Callable[[Job], bool]:
    """Match jobs of this namespace, repo and directory, if these are given."""

    def is_there(job: Job) -> bool:
        said = [job.payload.get(name) for name in TARGETS]
        said[0] = job.owner if said[0] is None else said[0]
        return all(one in (None, "", has) for one, has in zip(wanted, said, strict=True))

    return is_there


def _kept(body: dict[str, Any]) -> dict[str, Any]:
    """Return the values that answers repeat: the prompt, the target, and the other parameters if
    they are small."""
    rest = {name: value for name, value in body.items() if name != WAITED_FOR}
    prompt, named = rest.get("prompt"), {name: rest[name] for name in TARGETS if name in rest}
    if not isinstance(prompt, str):
        return excerpt({**named, **rest})
    del rest["prompt"]
    return {"prompt": prompt[:_PROMPT_CHARACTERS], **excerpt({**named, **rest})}


def _states(status: str | None) -> list[State]:
    """The states of a status, or the active states without one. Raises `Refusal`."""
    names = (status,) if status else wire.ACTIVE
    found = [state for state, name in wire.STATUS.items() if name in names]
    if not found:
        allowed = ", ".join(dict.fromkeys(wire.STATUS.values()))
        raise Refusal("invalid_request", f"status must be one of {allowed}")
    return found


class _History:
    """All of a caller's generations, including those of the sync route, with their cost."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def all(
        self,
        request: Request,
        namespace: str | None = Query(None, description="Only those of this `target_namespace`."),
        model: str | None = Query(None),
        media_type: str | None = Query(None, description="`video` or `image`."),
        status: str | None = Query(None, description="Only these."),
        repo: str | None = Query(None, description="Only those of this `target_repo`."),
        folder: str | None = Query(None, description="Only those of this `target_directory`."),
        page: int = Query(1, ge=1, le=_PAGES_MOST),
        page_size: int = Query(50, ge=1, le=_PAGE_MOST),
    ) -> JSONResponse:
        """Lists the caller's newest thousand generations, one page at a time."""
        wanted = _states(status) if status else None
        is_there, shown, entries, cost = _is_at(namespace, repo, folder), [], 0, Decimal(0)
        begin, end = (page - 1) * page_size, page * page_size
        if media_type in (None, "", "video") and (not model or model in models.MODELS):
            owner = request.state.owner
            found = self._context.jobs.of_owner(NAME, owner, states=wanted, model=model or None)
            async for jobs in found:
                for job in filter(is_there, jobs):
                    if begin <= entries < end:
                        shown.append(self._recorded(job))
                    entries += 1
                    cost += wire.cost_of(job)
        return JSONResponse(wire.history(shown, page, page_size, entries, cost))

    async def one(self, request: Request, generation_id: str) -> JSONResponse:
        """Returns one generation with its cost."""
        job = await self._context.jobs.find(NAME, request.state.owner, generation_id)
        if job is None:
            raise Refusal("not_found", "The generation does not exist")
        return JSONResponse(wire.found(self._recorded(job)))

    def _recorded(self, job: Job) -> dict[str, Any]:
        return wire.recorded(job, _url(self._context, job))


class _Models:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def all(
        self,
        search: str = Query("", description="A part of a name."),
        developer_name: str = Query(""),
        provider_name: str = Query(""),
        action: str = Query("", description="`video`, or what a model does."),
    ) -> JSONResponse:
        """The models of this door that are configured on this server."""
        return self._listed(models.found(search, developer_name, provider_name, action))

    async def search(self, search: str = Query(description="A part of a name.")) -> JSONResponse:
        """Finds models by a part of their name."""
        return self._listed(models.found(search))

    async def featured(self) -> JSONResponse:
        """Lists all models."""
        return self._listed(models.found(""))

    async def favorites(self) -> JSONResponse:
        """Returns an empty list, because this server marks no model as featured."""
        return self._listed([])

    def _listed(self, found: list[models.Model]) -> JSONResponse:
        data = [self._described(model) for model in found if self._context.serves(model.task)]
        return JSONResponse({"object": "list", "data": data})

    async def one(self, model_id: str) -> JSONResponse:
        """Returns one model with the schema of its parameters, under both names of the schema."""
        model = _served(self._context, model_id)
        if model is None:
            return JSONResponse(wire.model_not_found(model_id), 404)
        return JSONResponse(self._described(model))

    def _described(self, model: models.Model) -> dict[str, Any]:
        prices = self._context.settings.prices
        rates = {size: price_a_second(size, prices, model.task) for size in HOSTED_PRICES}
        return models.described(model, rates)
