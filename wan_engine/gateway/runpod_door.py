"""Runpod's endpoint API: `/v2/{endpoint}/run` and what belongs to it, as its SDKs call it."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from wan_engine.gateway.context import Context, Door, read_json
from wan_engine.gateway.job import Job, NewJob
from wan_engine.gateway.problems import Problem

NAME = "runpod"

_STATUS = {
    "queued": "IN_QUEUE",
    "running": "IN_PROGRESS",
    "completed": "COMPLETED",
    "failed": "FAILED",
    "cancelled": "CANCELLED",
    "expired": "TIMED_OUT",
}


def door(context: Context) -> Door:
    return Door(name=NAME, prefixes=("/v2",), router=_router(context), refuse=refuse)


def refuse(problem: Problem) -> JSONResponse:
    return JSONResponse({"error": problem.message}, problem.status)


def _router(context: Context) -> APIRouter:
    router = APIRouter(prefix="/v2/{endpoint}", tags=["Runpod"])

    @router.post("/run")
    async def run(endpoint: str, request: Request) -> JSONResponse:
        _check(context, endpoint)
        body = await read_json(request)
        if not isinstance(body, dict) or not isinstance(body.get("input"), dict):
            raise Problem("invalid_request", 'field "input" must be an object')
        new = NewJob(
            id=f"{uuid.uuid4()}-u1",
            door=NAME,
            model=endpoint,
            owner=request.state.owner,
            request=body["input"],
            base_url=context.base_url(request),
        )
        (job,) = await context.jobs.submit(new)
        return JSONResponse({"id": job.id, "status": "IN_QUEUE"})

    @router.get("/status/{job_id}")
    async def status(endpoint: str, job_id: str, request: Request) -> JSONResponse:
        _check(context, endpoint)
        job = await context.jobs.find(NAME, request.state.owner, job_id)
        if job is None or job.model != endpoint:
            raise Problem("not_found", "job not found")
        return JSONResponse(_body(context, job))

    return router


def _check(context: Context, endpoint: str) -> None:
    if endpoint not in context.settings.endpoints:
        raise Problem("not_found", "endpoint not found")


def _body(context: Context, job: Job) -> dict[str, Any]:
    body: dict[str, Any] = {"id": job.id, "status": _STATUS[job.state]}
    if job.delay_ms is not None:
        body["delayTime"] = job.delay_ms
    if job.execution_ms is not None:
        body["executionTime"] = job.execution_ms
    if job.state == "completed":
        body["output"] = context.links.output(job)
    if job.error is not None:
        body["error"] = job.error
    return dict(sorted(body.items()))
