"""Defines the routes of `/v1/videos`: create, poll, download and delete a video."""

from __future__ import annotations

import asyncio
import tempfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from weakref import WeakValueDictionary

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from wan_engine.errors import EngineError
from wan_engine.gateway.door import Door
from wan_engine.gateway.doors.context import Context, read_json
from wan_engine.gateway.doors.openai import pages, parameters, wire
from wan_engine.gateway.http.body import Body
from wan_engine.gateway.job import Job, NewJob
from wan_engine.gateway.keys import NO_KEY
from wan_engine.gateway.links import ClipResponse
from wan_engine.gateway.refusals import Refusal, RefusalCode
from wan_engine.media import stills

NAME = "openai"
PATH = "/v1/videos"

POLL_AFTER_MS = 2000
"""The poll interval, in a header that OpenAI's client reads."""

_LIST_MOST = 100
_STILLS_AT_ONCE = 1
_STILL_TYPES = {"thumbnail": "image/webp", "spritesheet": "image/jpeg"}

Variant = Literal["video", "thumbnail", "spritesheet"]
OrderOfTime = Literal["asc", "desc"]


def door(context: Context) -> Door:
    """Return the door that serves the jobs of `context`."""
    router = APIRouter(tags=["OpenAI"])
    routes = _Routes(context)
    add, one = router.add_api_route, f"{PATH}/{{video_id}}"
    add(PATH, routes.create, methods=["POST"], **pages.CREATE)
    add(PATH, routes.all, methods=["GET"], **pages.LIST)
    add(f"{PATH}/sync", routes.sync, methods=["POST"], **pages.SYNC)
    add(one, routes.one, methods=["GET"], **pages.ONE)
    add(one, routes.delete, methods=["DELETE"], **pages.DELETE)
    add(f"{one}/content", routes.content, methods=["GET"], **pages.CONTENT)
    return Door(NAME, (PATH,), router, refuse)


class _Routes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._stills = asyncio.Semaphore(_STILLS_AT_ONCE)
        self._still_of: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def create(self, request: Request) -> JSONResponse:
        """Queues the video and answers at once. The body is a form or JSON."""
        try:
            job = await self._submit(request)
        except parameters.ParameterError as error:
            return _wrong(error)
        return JSONResponse(wire.video(job))

    async def sync(self, request: Request) -> Response:
        """Renders a video while the caller waits, and answers with its bytes. If the caller
        disconnects, the job is cancelled."""
        try:
            job = await self._submit(request)
        except parameters.ParameterError as error:
            return _wrong(error)
        job = await self._context.ended(job, request)
        if job.state != "completed":
            return JSONResponse(wire.failed(job), 400 if job.callers_fault else 500)
        headers = {"X-Request-Id": job.id}
        if (path := self._context.links.path(job)) is not None:
            return ClipResponse(path, media_type="video/mp4", headers=headers)
        clip = await self._context.links.read(job)
        return Response(clip, media_type="video/mp4", headers=headers)

    async def all(
        self,
        request: Request,
        after: str | None = Query(None, description="The last `id` of the previous page."),
        limit: int = Query(20, ge=1, le=_LIST_MOST),
        order: OrderOfTime = "desc",
    ) -> JSONResponse:
        """Lists the caller's newest thousand videos, one page at a time."""
        after = after or None
        if after is not None:
            await self._found(request, after)
        take = self._newest if order == "desc" else self._oldest
        found = await take(request.state.owner, after, limit + 1)
        return JSONResponse(wire.listed(found[:limit], has_more=len(found) > limit))

    async def one(self, request: Request, video_id: str) -> JSONResponse:
        """Returns the status of a video."""
        job = await self._found(request, video_id)
        headers = {} if job.final else {"openai-poll-after-ms": str(POLL_AFTER_MS)}
        return JSONResponse(wire.video(job), headers=headers)

    async def delete(self, request: Request, video_id: str) -> JSONResponse:
        """Cancels a video that is not finished, and deletes it with its request and its file. A
        file in a bucket stays until the bucket's own lifecycle rule deletes it."""
        job = await self._context.jobs.cancel(await self._found(request, video_id))
        await asyncio.to_thread(self._context.links.remove, job)
        await self._context.jobs.remove(job)
        return JSONResponse(wire.deleted(video_id))

    async def content(
        self, request: Request, video_id: str, variant: Variant = "video"
    ) -> Response:
        """Returns the mp4, its first frame (WEBP), or a sheet of sixteen frames (JPEG)."""
        job = await self._found(request, video_id)
        if job.state != "completed":
            sentence = "The video failed" if job.final else "The video is not ready yet"
            raise Refusal("conflict", f"{sentence}: see GET {PATH}/{video_id}")
        path = self._context.links.path(job)
        if path is not None and not path.is_file():
            raise Refusal("gone", "The clip is no longer stored")
        if variant != "video":
            still = await self._still(job, path, variant, request)
            return Response(still, media_type=_STILL_TYPES[variant])
        if path is None:
            return RedirectResponse(self._context.links.url(job), 302)
        return ClipResponse(path, media_type="video/mp4", filename=f"{job.id}.mp4")

    # --- shared by the routes --------------------------------------------------------------------

    async def _submit(self, request: Request) -> Job:
        """Queue the video of a request. Raises `ParameterError`."""
        body: Body = request.state.body
        given = parameters.of_form(await body.form()) if body.is_form else await read_json(request)
        asked = parameters.parse(given, self._context.serves)
        new = NewJob(
            id=wire.new_id(),
            door=NAME,
            model=asked.model,
            owner=request.state.owner,
            request=asked.fields,
            base_url=self._context.base_url(request),
            payload=asked.payload,
        )
        (job,) = await self._context.submit(request, new)
        return job

    async def _found(self, request: Request, video_id: str) -> Job:
        job = await self._context.jobs.find(NAME, request.state.owner, video_id)
        if job is None:
            raise Refusal("not_found", "You have no video with this id")
        return job

    async def _newest(self, owner: str, after: str | None, most: int) -> list[Job]:
        found: list[Job] = []
        behind = after is None
        async for page in self._context.jobs.of_owner(NAME, owner):
            for job in page:
                if behind:
                    found.append(job)
                behind = behind or job.id == after
            if len(found) >= most:
                break
        return found[:most]

    async def _oldest(self, owner: str, after: str | None, most: int) -> list[Job]:
        found: deque[Job] = deque(maxlen=most)
        async for page in self._context.jobs.of_owner(NAME, owner):
            for job in page:
                if job.id == after:
                    return list(reversed(found))
                found.append(job)
        return list(reversed(found))

    async def _still(self, job: Job, path: Path | None, variant: str, request: Request) -> bytes:
        """Make one picture at a time, so that pictures leave the machine free for clips. Pictures
        of one key wait for each other first, so that other keys need not wait for all of them."""
        async with self._still_of.setdefault(job.owner, asyncio.Lock()), self._stills:
            if await request.is_disconnected():
                raise Refusal("timeout", "Nobody waits for the picture any longer")
            if path is not None:
                return await _still(path, variant, job)
            with tempfile.NamedTemporaryFile(dir=self._context.settings.scratch_dir) as file:
                clip = await self._context.links.read(job)
                await asyncio.to_thread(Path(file.name).write_bytes, clip)
                return await _still(Path(file.name), variant, job)


async def _still(path: Path, variant: str, job: Job) -> bytes:
    try:
        if variant == "thumbnail":
            return await asyncio.to_thread(stills.thumbnail, path)
        return await asyncio.to_thread(stills.spritesheet, path, job.payload["seconds"])
    except EngineError as error:
        if not path.is_file():
            raise Refusal("gone", "The clip is no longer stored") from None
        raise Refusal("internal_error", str(error)) from error


_KINDS: Mapping[RefusalCode, tuple[str, str | None]] = {
    "unauthenticated": ("invalid_request_error", "invalid_api_key"),
    "rate_limited": ("requests", "rate_limit_exceeded"),
    "queue_full": ("requests", "rate_limit_exceeded"),
    "unavailable": ("server_error", None),
    "internal_error": ("server_error", None),
}


def refuse(refusal: Refusal, _path: str) -> JSONResponse:
    """Return this API's answer to a refusal of the gateway."""
    kind, code = _KINDS.get(refusal.code, ("invalid_request_error", None))
    message = refusal.message
    if refusal.code == "unauthenticated":
        message = "You didn't provide an API key." if message == NO_KEY else "Incorrect API key."
    return JSONResponse(wire.failure(message, kind, code), refusal.status)


def _wrong(error: parameters.ParameterError) -> JSONResponse:
    code = "model_not_found" if error.param == "model" else "invalid_value"
    return JSONResponse(wire.failure(str(error), code=code, param=error.param), 400)
