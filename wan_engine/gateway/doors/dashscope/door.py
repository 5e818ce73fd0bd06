"""Defines DashScope's routes: create a task, poll it until it has ended, list tasks, and cancel
one."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse

from wan_engine.gateway.door import Door
from wan_engine.gateway.doors.context import Context, read_json
from wan_engine.gateway.doors.dashscope import pages, parameters, wire
from wan_engine.gateway.job import Job, NewJob
from wan_engine.gateway.keys import NO_KEY
from wan_engine.gateway.refusals import Refusal, RefusalCode

NAME = "dashscope"
PREFIX = "/api/v1"
CREATE = f"{PREFIX}/services/aigc/video-generation/video-synthesis"
TASKS = f"{PREFIX}/tasks"

_PAGE_MOST = 100


def door(context: Context) -> Door:
    """Return the door that serves the jobs of `context`."""
    router = APIRouter(tags=["DashScope"])
    routes = _Routes(context)
    add = router.add_api_route
    add(CREATE, routes.create, methods=["POST"], **pages.CREATE)
    add(TASKS, routes.all, methods=["GET"], **pages.LIST)
    add(f"{TASKS}/{{task_id}}", routes.one, methods=["GET"], **pages.ONE)
    add(f"{TASKS}/{{task_id}}/cancel", routes.cancel, methods=["POST"], **pages.CANCEL)
    return Door(NAME, (PREFIX,), router, refuse)


class _Routes:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def create(self, request: Request) -> JSONResponse:
        """Queues the video and answers at once. Requires the header `X-DashScope-Async: enable`,
        because this API has no synchronous route."""
        if request.headers.get("x-dashscope-async", "").lower() != "enable":
            sentence = "current user api does not support synchronous calls."
            return _failure(403, "AccessDenied", sentence)
        body = await read_json(request)
        try:
            asked = parameters.parse(body, self._context.serves)
        except parameters.ParameterError as error:
            return _failure(400, error.code, str(error))
        new = NewJob(
            id=str(uuid.uuid4()),
            door=NAME,
            model=asked.model,
            owner=request.state.owner,
            request=asked.fields,
            base_url=self._context.base_url(request),
            payload=asked.payload,
        )
        (job,) = await self._context.submit(request, new)
        return JSONResponse(wire.created(job))

    async def one(self, request: Request, task_id: str) -> JSONResponse:
        """Returns the status of a task, and the URL of its video once it has succeeded. Both are
        available for 24 hours after its end. An unknown task has the status `UNKNOWN`, with HTTP
        status 200."""
        job = await self._found(request, task_id)
        if job is None:
            return JSONResponse(wire.unknown(task_id))
        done = job.state == "completed"
        url = self._context.links.url(job, wire.LIFE_SECONDS) if done else None
        return JSONResponse(wire.task(job, url))

    async def all(
        self,
        request: Request,
        page_no: int = Query(1, ge=1, le=1000),
        page_size: int = Query(10, ge=1, le=_PAGE_MOST),
        status: str | None = Query(None, description="Only these."),
        model_name: str | None = Query(None, description="Only the tasks of this model."),
    ) -> JSONResponse:
        """Lists the caller's tasks of the last 24 hours, newest first."""
        begin, end, count = (page_no - 1) * page_size, page_no * page_size, 0
        rows = []
        if model_name and model_name not in parameters.MODELS:
            return JSONResponse(wire.listed([], page_no, page_size, 0))
        pages = self._context.jobs.of_owner(NAME, request.state.owner, model=model_name or None)
        async for page in pages:
            for job in page:
                if wire.is_over(job) or status not in (None, "", wire.STATUS[job.state]):
                    continue
                if begin <= count < end:
                    rows.append(wire.row(job))
                count += 1
        return JSONResponse(wire.listed(rows, page_no, page_size, count))

    async def cancel(self, request: Request, task_id: str) -> JSONResponse:
        """Cancels a task that is still queued."""
        job = await self._found(request, task_id)
        if job is None or job.state != "queued":
            sentence = "Failed to cancel the task, please confirm if the task is in PENDING status."
            return _failure(400, "UnsupportedOperation", sentence)
        await self._context.jobs.cancel(job)
        return JSONResponse({"request_id": wire.request_id()})

    async def _found(self, request: Request, task_id: str) -> Job | None:
        job = await self._context.jobs.find(NAME, request.state.owner, task_id)
        return None if job is None or wire.is_over(job) else job


_CODES: Mapping[RefusalCode, str] = {
    "unauthenticated": "InvalidApiKey",
    "forbidden": "AccessDenied",
    "not_found": "InvalidURL",
    "method_not_allowed": "InvalidURL",
    "too_large": "BadRequest.TooLarge",
    "rate_limited": "Throttling.RateQuota",
    "queue_full": "Throttling.AllocationQuota",
    "timeout": "RequestTimeOut",
    "unavailable": "InternalError",
    "internal_error": "InternalError",
}


def refuse(refusal: Refusal, _path: str) -> JSONResponse:
    """Return this API's answer to a refusal of the gateway."""
    message = refusal.message
    if refusal.code == "unauthenticated":
        given = "No" if message == NO_KEY else "Invalid"
        message = f"{given} API-key provided."
    return _failure(refusal.status, _CODES.get(refusal.code, "InvalidParameter"), message)


def _failure(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse(wire.failure(code, message), status)
