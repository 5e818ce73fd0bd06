"""Defines the routes that the page needs in addition to the public APIs: models and prices, the
crop of a picture, a job's place in the queue, and what a job was made from.

The page submits and cancels jobs with Runpod's API, so these routes show the jobs of that door. The
guard has checked the key before, and no key sees another key's jobs.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args
from weakref import WeakValueDictionary

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from wan_engine.catalog import ModelSpec, known_models
from wan_engine.catalog.with_settings import with_settings
from wan_engine.errors import EngineError
from wan_engine.gateway.door import Door
from wan_engine.gateway.doors.context import Context
from wan_engine.gateway.doors.runpod.door import NAME as RUNPOD
from wan_engine.gateway.doors.runpod.door import STATUS
from wan_engine.gateway.job import Job, now_ms
from wan_engine.gateway.playground.made_from import FIELDS, file_of, made_from
from wan_engine.gateway.playground.sizes import sizes_of
from wan_engine.gateway.refusals import Refusal
from wan_engine.media import stills
from wan_engine.schema import Size, Task
from wan_engine.schema.pricing import price_a_second

PREFIX = "/playground/api"
_SIZES: tuple[str, ...] = get_args(Size)
_STILL_WIDTH = 480
_STILLS_AT_ONCE = 1
_FILES_AT_ONCE = 2

Side = Annotated[int, Query(ge=1, le=100_000)]
Place = Annotated[int, Query(ge=0, le=99)]


def door(context: Context) -> Door:
    return Door(
        name="playground",
        prefixes=(PREFIX,),
        router=_Routes(context).router,
        refuse=lambda refusal, _path: JSONResponse({"error": refusal.message}, refusal.status),
    )


class _Routes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._stills = asyncio.Semaphore(_STILLS_AT_ONCE)
        self._still_of: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._files = asyncio.Semaphore(_FILES_AT_ONCE)
        self._file_of: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.router = router = APIRouter(prefix=PREFIX, include_in_schema=False)
        router.get("/server")(self.server)
        router.get("/sizes")(self.sizes)
        router.get("/jobs/{job_id}")(self.job)
        router.get("/jobs/{job_id}/still")(self.still)
        router.get("/jobs/{job_id}/request")(self.request)
        router.get("/jobs/{job_id}/request/{field}")(self.file)

    async def server(self) -> JSONResponse:
        """Return the models with their inputs and LoRA files, the prices if the operator has set
        any, and the seconds that the last job of each kind took."""
        prices = self._context.settings.prices
        takes, loras = self._context.takes(), self._context.loras()
        return JSONResponse(
            {
                "models": dict(self._context.models() or {}),
                "takes": {task: list(inputs) for task, inputs in (takes or {}).items()},
                "loras": None
                if loras is None
                else {task: list(names) for task, names in loras.items()},
                "prices": {
                    task: {size: float(price_a_second(size, prices, task)) for size in _SIZES}
                    for task in get_args(Task)
                }
                if prices
                else None,
                "seconds": self._context.jobs.run_times.known(),
            }
        )

    async def sizes(self, width: Side, height: Side, task: Task) -> JSONResponse:
        """Return the size of the clip of a picture, and the part of the picture that the clip
        shows."""
        row = self._rows().get(task)
        frame = self._context.settings.frame
        return JSONResponse({size: sizes_of(width, height, size, row, frame) for size in _SIZES})

    async def job(self, job_id: str, request: Request, preview: int | None = None) -> JSONResponse:
        """Return a job with its times, its place in the queue, and its expected remaining seconds.
        A request with the step of its last `preview` (-1 for none) also gets a newer preview."""
        job = await self._found(job_id, request)
        newer = None if preview is None else self._context.jobs.preview(job, preview)
        shown = {"preview": newer.uri, "preview_step": newer.step} if newer else {}
        return JSONResponse({**self._body(job), **shown})

    async def still(self, job_id: str, request: Request) -> Response:
        """Return the first frame of a clip as a small picture."""
        job = await self._found(job_id, request)
        if job.state != "completed":
            raise Refusal("not_found", "There is no clip yet")
        # One at a time, so that pictures leave the machine free for clips. Pictures of one key wait
        # for each other first, so that other keys need not wait for all of them.
        async with self._still_of.setdefault(job.owner, asyncio.Lock()), self._stills:
            if await request.is_disconnected():
                raise Refusal("timeout", "Nobody waits for the picture any longer")
            picture = await self._still(job)
        return Response(picture, media_type="image/webp", headers={"Cache-Control": "no-store"})

    async def request(self, job_id: str, request: Request) -> JSONResponse:
        """Return what a job was made from, without its files."""
        job = await self._found(job_id, request)
        return JSONResponse(made_from(*await self._context.jobs.cut_request(job.id)))

    async def file(self, job_id: str, field: str, request: Request, at: Place = 0) -> Response:
        """Return a file of a request, as the data URI that was sent."""
        job = await self._found(job_id, request)
        if field not in FIELDS:
            raise Refusal("not_found", "A request has no such file")
        return _FileOfRequest(self, job, field, at, request)

    async def file_text(self, job: Job, field: str, at: int) -> str:
        jobs = self._context.jobs
        async with self._files:
            known = await jobs.whole_request(job.id) or (await jobs.cut_request(job.id))[0]
            found = file_of(known, field, at)
        if found is None:
            raise Refusal("not_found", "The gateway does not keep this file any longer")
        return found

    def turn(self, owner: str) -> asyncio.Lock:
        """The lock under which files of requests are read for this key, and sent."""
        return self._file_of.setdefault(owner, asyncio.Lock())

    # --- shared by the routes --------------------------------------------------------------------

    async def _found(self, job_id: str, request: Request) -> Job:
        job = await self._context.jobs.find(RUNPOD, request.state.owner, job_id)
        if job is None:
            raise Refusal("not_found", "There is no job of yours with this id")
        return job

    def _rows(self) -> Mapping[Task, ModelSpec]:
        """The catalogue rows of the served models, with the engine's settings applied."""
        known = known_models()
        served = self._context.models() or {}
        return {
            task: with_settings(known[name], self._context.settings)
            for task, name in served.items()
            if name in known
        }

    def _body(self, job: Job) -> dict[str, Any]:
        jobs = self._context.jobs
        body: dict[str, Any] = {
            "id": job.id,
            "endpoint": job.model,
            "status": STATUS[job.state],
            "now": now_ms(),
            "created": job.created_ms,
            "queued": job.queued_ms,
            "started": job.started_ms,
            "finished": job.finished_ms,
            "error": job.error,
        }
        if job.state == "completed":
            body["output"] = self._context.links.output(job)
        if not job.final:
            body |= {"before": jobs.before(job), "seconds_left": jobs.seconds_left(job)}
        if job.state == "queued":
            body["waiting_for"] = self._context.waiting_for()
        if (progress := job.progress) is not None:
            steps = {"step": progress.step, "steps": progress.steps}
            body["progress"] = {"stage": progress.stage, **steps}
        return body

    async def _still(self, job: Job) -> bytes:
        links = self._context.links
        if (path := links.path(job)) is not None:
            return await _still(path)
        with tempfile.NamedTemporaryFile(dir=self._context.settings.scratch_dir) as file:
            await asyncio.to_thread(Path(file.name).write_bytes, await links.read(job))
            return await _still(Path(file.name))


async def _still(path: Path) -> bytes:
    try:
        return await asyncio.to_thread(stills.thumbnail, path, _STILL_WIDTH)
    except EngineError as error:
        raise Refusal("not_found", str(error)) from error


class _FileOfRequest(Response):
    """Reads a file of a request when it is its key's turn, and holds the turn until it is sent.
    The files may have megabytes, so that a key has only one of them in memory."""

    def __init__(self, routes: _Routes, job: Job, field: str, at: int, request: Request) -> None:
        super().__init__()
        self._routes, self._job, self._field, self._at = routes, job, field, at
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._routes.turn(self._job.owner):
            if await self._request.is_disconnected():
                raise Refusal("timeout", "Nobody waits for the file any longer")
            text = await self._routes.file_text(self._job, self._field, self._at)
            headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
            await PlainTextResponse(text, headers=headers)(scope, receive, send)
