"""Defines the routes of Runpod's endpoint API (`/v2/{endpoint}/run` and so on) for its SDKs.

The structures are from docs.runpod.io, serverless/endpoints (operation reference, send requests,
job states). Where that page says nothing, they are what the Python and JavaScript SDKs read.
"""

from __future__ import annotations

import logging
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import WithJsonSchema
from starlette.responses import JSONResponse

from wan_engine.errors import InvalidRequest
from wan_engine.gateway.door import Door
from wan_engine.gateway.doors.context import Context, read_json
from wan_engine.gateway.doors.runpod import pages as schema
from wan_engine.gateway.job import DAY_SECONDS, Job, NewJob, State
from wan_engine.gateway.jobs.webhook_url import checked_webhook
from wan_engine.gateway.refusals import Refusal
from wan_engine.schema import is_nothing
from wan_engine.storage import given_bucket, unknown_fields

log = logging.getLogger(__name__)

NAME = "runpod"

REFERENCES = "wan-2-6-r2v"
TEXT = "wan-2-6-t2v"
"""Endpoints that take the input of the hosted API. Any other endpoint takes the input of the
worker."""

_MEDIA = ("image", "last_image", "first_clip", "references")

RUN_MAX_BYTES = 10 * 2**20
_RUNSYNC_MAX_BYTES = 20 * 2**20
_WAIT_MS = (1_000, 300_000)
_DEFAULT_WAIT_MS = 300_000  # longer than the documented 90 s, which the documented sample exceeded
_EXECUTION_TIMEOUT_MS = (5_000, 604_800_000)
_TTL_MS = (10_000, 604_800_000)
_STREAMED = 10_000  # the number of jobs with streamed output that the door remembers

STATUS: Mapping[State, str] = {
    "queued": "IN_QUEUE",
    "running": "IN_PROGRESS",
    "completed": "COMPLETED",
    "failed": "FAILED",
    "cancelled": "CANCELLED",
    "expired": "TIMED_OUT",
}

# Checked in the route, because a number out of range is replaced by the nearest one.
Wait = Annotated[
    str | None,
    Query(description="How long to wait for the job to end, in ms."),
    WithJsonSchema({"type": "integer", "minimum": _WAIT_MS[0], "maximum": _WAIT_MS[1]}),
]
Endpoint = Annotated[
    str, Path(description="One of WAN_ENDPOINTS.", examples=["wan-2-6-i2v"], max_length=128)
]


def door(context: Context) -> Door:
    routes = _Routes(context)
    return Door(
        name=NAME,
        prefixes=("/v2",),
        router=routes.router,
        refuse=refuse,
        max_bytes=_max_bytes,
        webhook_body=routes.webhook_body,
    )


def refuse(refusal: Refusal, path: str) -> JSONResponse:
    """Add `status`, because the SDK's async client reads it from every answer. A wrong request to
    `run` or `runsync` gets an `id` too, as on the page."""
    if refusal.code == "not_found":
        body = {"error": refusal.message, "status": 404, "title": "Not Found"}
        return JSONResponse(body, 404)
    status = 400 if refusal.code == "conflict" else refusal.status
    body = {"error": refusal.message, "status": "FAILED"}
    operation = path.rpartition("/")[2]
    if status == 400 and operation in ("run", "runsync"):
        body["id"] = _new_id(operation)
    return JSONResponse(_sorted(body), status)


def _max_bytes(rest: str) -> int | None:
    operation = rest.rpartition("/")[2]
    return {"run": RUN_MAX_BYTES, "runsync": _RUNSYNC_MAX_BYTES}.get(operation)


class _Routes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._streamed: OrderedDict[str, None] = OrderedDict()
        self.router = router = APIRouter(prefix="/v2/{endpoint}", tags=["Runpod"])
        asked = schema.REQUEST
        router.post("/run", openapi_extra=asked, responses=schema.RUN)(self.run)
        router.post("/runsync", openapi_extra=asked, responses=schema.RUNSYNC)(self.runsync)
        router.get("/status/{job_id}", responses=schema.STATUS)(self.status)
        router.post("/status/{job_id}", include_in_schema=False)(self.status)
        router.get("/status-sync/{job_id}", responses=schema.STATUS_SYNC)(self.status_sync)
        router.get("/stream/{job_id}", responses=schema.STREAMED)(self.stream)
        router.post("/cancel/{job_id}", responses=schema.CANCELLED)(self.cancel)
        router.post("/retry/{job_id}", responses=schema.RETRIED)(self.retry)
        router.post("/purge-queue", responses=schema.PURGED)(self.purge_queue)
        router.get("/health", responses=schema.HEALTH)(self.health)

    async def run(self, endpoint: Endpoint, request: Request) -> JSONResponse:
        """Queue a job and answer at once."""
        job = await self._submit(endpoint, request, "run")
        return JSONResponse({"id": job.id, "status": "IN_QUEUE"})

    async def runsync(
        self, endpoint: Endpoint, request: Request, wait: Wait = None
    ) -> JSONResponse:
        """Queue a job and wait for it to end. Poll a job that takes longer by its `id`."""
        wait_seconds = _wait_seconds(wait)
        job = await self._submit(endpoint, request, "runsync")
        job = await self._context.jobs.wait(job, wait_seconds)
        bad = job.state == "failed" and job.callers_fault
        return JSONResponse(self._body(job), 400 if bad else 200)

    async def status(self, endpoint: Endpoint, job_id: str, request: Request) -> JSONResponse:
        """Return the present state of a job."""
        return JSONResponse(self._body(await self._shown(endpoint, job_id, request)))

    async def status_sync(
        self, endpoint: Endpoint, job_id: str, request: Request, wait: Wait = None
    ) -> JSONResponse:
        """Wait until a job has ended or `wait` is over, and return its state."""
        wait_seconds = _wait_seconds(wait)
        job = await self._shown(endpoint, job_id, request)
        return JSONResponse(self._body(await self._context.jobs.wait(job, wait_seconds)))

    async def stream(self, endpoint: Endpoint, job_id: str, request: Request) -> JSONResponse:
        """Return the output since the last call. The output of a job is one part, which is returned
        once."""
        job = await self._shown(endpoint, job_id, request)
        parts = []
        if job.state == "completed" and job.id not in self._streamed:
            self._streamed[job.id] = None
            parts = [{"output": self._context.links.output(job)}]
        while len(self._streamed) > _STREAMED:
            self._streamed.popitem(last=False)
        return JSONResponse({"status": STATUS[job.state], "stream": parts})

    async def cancel(self, endpoint: Endpoint, job_id: str, request: Request) -> JSONResponse:
        """Cancel a job that is queued or running. A job that has ended is unchanged."""
        job = await self._shown(endpoint, job_id, request)
        return JSONResponse(_id_and_status(await self._context.jobs.cancel(job)))

    async def retry(self, endpoint: Endpoint, job_id: str, request: Request) -> JSONResponse:
        """Queue a job again that has failed or timed out."""
        job = await self._context.jobs.retry(await self._found(endpoint, job_id, request))
        self._streamed.pop(job.id, None)
        return JSONResponse(_id_and_status(job))

    async def purge_queue(self, endpoint: Endpoint, request: Request) -> JSONResponse:
        """Cancel all queued jobs of the caller."""
        self._check(endpoint)
        jobs = self._context.jobs
        waiting = jobs.waiting(NAME, request.state.owner, endpoint)
        ended = [await jobs.cancel(job) for job in waiting]
        removed = sum(job.state == "cancelled" for job in ended)
        return JSONResponse({"removed": removed, "status": "completed"})

    async def health(self, endpoint: Endpoint, request: Request) -> JSONResponse:
        """Return the number of the caller's jobs, and the state of the workers for all callers."""
        self._check(endpoint)
        owner = request.state.owner
        counts, retried = await self._context.jobs.counts(NAME, owner, endpoint)
        jobs = {
            "completed": counts.get("completed", 0),
            "failed": counts.get("failed", 0) + counts.get("expired", 0),
            "inProgress": counts.get("running", 0),
            "inQueue": counts.get("queued", 0),
            "retried": retried,
        }
        running = self._context.jobs.workers()
        ready = self._context.waiting_for() is None
        idle = int(ready and not running)
        workers = {
            "idle": idle,
            "initializing": int(not ready),
            "ready": (idle + running) * ready,
            "running": running,
            "throttled": 0,
            "unhealthy": 0,
        }
        body: dict[str, Any] = {"jobs": jobs, "workers": workers}
        if (models := self._context.models()) is not None:
            body["models"] = dict(models)
        return JSONResponse(body)

    def webhook_body(self, job: Job, request: dict[str, Any]) -> dict[str, Any]:
        return _sorted({**self._body(job), "input": request, "webhook": job.webhook})

    # --- shared by the routes --------------------------------------------------------------------

    def _check(self, endpoint: str) -> None:
        known = endpoint in self._context.settings.endpoints
        if endpoint in (REFERENCES, TEXT):
            known = known and self._context.serves("reference-to-video")
        if not known:
            raise Refusal("not_found", "endpoint not found")

    async def _found(self, endpoint: str, job_id: str, request: Request) -> Job:
        self._check(endpoint)
        job = await self._context.jobs.find(NAME, request.state.owner, job_id)
        if job is None or job.model != endpoint:
            raise Refusal("not_found", "job not found")
        return job

    async def _shown(self, endpoint: str, job_id: str, request: Request) -> Job:
        """Find a job. A job whose time to live is over is not found, but can be retried."""
        job = await self._found(endpoint, job_id, request)
        if job.state == "expired":
            raise Refusal("not_found", "job not found")
        return job

    async def _submit(self, endpoint: str, request: Request, operation: str) -> Job:
        self._check(endpoint)
        body = await read_json(request)
        if not isinstance(body, dict):
            raise Refusal("invalid_request", "The body must be a JSON object")
        if body.get("input") is None:
            raise Refusal("invalid_request", 'field "input" is required')
        if not isinstance(body["input"], dict):
            raise Refusal("invalid_request", 'field "input" must be an object')
        _refuse_what_is_not_done(body)
        execution_ms, ttl_ms = _policy(body.get("policy"))
        private = self._context.settings.allow_private_urls
        webhook = await checked_webhook(body.get("webhook"), allow_private=private)
        new = NewJob(
            id=_new_id(operation),
            door=NAME,
            model=endpoint,
            owner=request.state.owner,
            request=_input(endpoint, body["input"]),
            base_url=self._context.base_url(request),
            webhook=webhook,
            ttl_seconds=DAY_SECONDS if ttl_ms is None else ttl_ms / 1000,
            run_seconds=None if execution_ms is None else execution_ms / 1000,
        )
        (job,) = await self._context.submit(request, new)
        return job

    def _body(self, job: Job) -> dict[str, Any]:
        body = _id_and_status(job)
        if job.delay_ms is not None:
            body["delayTime"] = job.delay_ms
        if job.execution_ms is not None:
            body["executionTime"] = job.execution_ms
        if job.worker is not None:
            body["workerId"] = job.worker
        if job.state == "completed":
            body["output"] = self._context.links.output(job)
        if job.state == "running" and (progress := job.progress) is not None:
            steps = {"step": progress.step, "steps": progress.steps}
            body["output"] = {"stage": progress.stage, **steps}
        if job.error is not None:
            late = job.state == "failed" and job.error_code == "deadline_exceeded"
            body["error"] = "executionTimeout exceeded" if late else job.error
        return _sorted(body)


def _input(endpoint: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a `Request` from the input of an endpoint. The text endpoint takes no
    media but sound. The reference endpoint requires references."""
    if endpoint == TEXT:
        for name in _MEDIA:
            if not is_nothing(given.get(name)):
                raise Refusal("invalid_request", f'field "{name}" is not supported by {TEXT}')
    elif endpoint != REFERENCES or not is_nothing(given.get("references")):
        return given
    rest = {key: value for key, value in given.items() if key not in _MEDIA}
    return {**rest, "references": [] if endpoint == TEXT else None}


def _new_id(operation: str) -> str:
    return f"{'sync-' if operation == 'runsync' else ''}{uuid.uuid4()}-u1"


def _sorted(body: Mapping[str, Any]) -> dict[str, Any]:
    """Put the keys in Runpod's order."""
    return dict(sorted(body.items()))


def _id_and_status(job: Job) -> dict[str, Any]:
    return {"id": job.id, "status": STATUS[job.state]}


def _wait_seconds(wait: str | None) -> float:
    if wait is None:
        return _DEFAULT_WAIT_MS / 1000
    least, most = _WAIT_MS
    if not (wait.isascii() and wait.isdigit() and len(wait) < 10):
        raise Refusal("invalid_request", f'field "wait" must be an integer from {least} to {most}')
    return min(max(int(wait), least), most) / 1000


def _refuse_what_is_not_done(body: Mapping[str, Any]) -> None:
    """Refuse fields that Runpod accepts beside `input` and this gateway does not support, so that
    none is silently ignored.

    The gateway does not support `s3Config`, because it would have to keep the keys of a caller's
    bucket in its database until the job runs.
    """
    try:
        unknown = unknown_fields(body)
        if given_bucket(body.get("s3Config")) is not None:
            raise InvalidRequest(
                'field "s3Config" is not supported here, clips go to the storage of this gateway: '
                "leave it out, or send the job to the endpoint itself"
            )
    except InvalidRequest as error:
        raise Refusal("invalid_request", str(error)) from error
    if body.get("webhookV2"):
        raise Refusal("invalid_request", 'field "webhookV2" is not supported: use "webhook"')
    if unknown:
        log.info('ignored beside "input": %s', ", ".join(unknown))


def _policy(policy: object) -> tuple[int | None, int | None]:
    """`executionTimeout` and `ttl` in milliseconds, if they are given."""
    if policy is None:
        return None, None
    if not isinstance(policy, dict):
        raise Refusal("invalid_request", 'field "policy" must be an object')
    execution = _milliseconds(policy, "executionTimeout", _EXECUTION_TIMEOUT_MS)
    return execution, _milliseconds(policy, "ttl", _TTL_MS)


def _milliseconds(policy: Mapping[str, Any], name: str, limits: tuple[int, int]) -> int | None:
    value = policy.get(name)
    if value is None:
        return None
    least, most = limits
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        allowed = f"an integer from {least} to {most}"
        raise Refusal("invalid_request", f'field "policy.{name}" must be {allowed}')
    return int(value)
