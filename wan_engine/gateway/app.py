"""The application: opens the database, starts the backend, and puts the doors behind the guard."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse

from wan_engine.gateway.backends import Backend, open_backend
from wan_engine.gateway.context import Context, Door
from wan_engine.gateway.doors.aiml import door as aiml_door
from wan_engine.gateway.doors.oxen import door as oxen_door
from wan_engine.gateway.doors.runpod import door as runpod_door
from wan_engine.gateway.http import health
from wan_engine.gateway.http.budget import InFlight, Pace
from wan_engine.gateway.http.guard import Guard, Rules, door_of, refusal
from wan_engine.gateway.jobs.database import open_database
from wan_engine.gateway.jobs.dispatch import Dispatcher
from wan_engine.gateway.jobs.fair_queue import FairQueue
from wan_engine.gateway.jobs.long_texts import open_contents
from wan_engine.gateway.jobs.ownership import Ownership
from wan_engine.gateway.jobs.requests import Requests
from wan_engine.gateway.jobs.service import Jobs
from wan_engine.gateway.jobs.store import Store
from wan_engine.gateway.jobs.sweep import sweep
from wan_engine.gateway.jobs.webhooks import Webhooks
from wan_engine.gateway.keys import Keys, RateLimit, shares
from wan_engine.gateway.links import Links
from wan_engine.gateway.metrics import Metrics
from wan_engine.gateway.openapi import DescribedApp
from wan_engine.gateway.playground import page
from wan_engine.gateway.readiness import Readiness
from wan_engine.gateway.refusals import STATUS, Code, Problem
from wan_engine.settings import VERSION, Settings

log = logging.getLogger(__name__)

DOORS: tuple[Callable[[Context], Door], ...] = (
    runpod_door.door,
    aiml_door.door,
    oxen_door.door,
)
"""Every hosted API that is served."""

_EXPOSED = ("Retry-After", "Content-Range", "Accept-Ranges", "ETag")


@dataclass
class Gateway:
    """What is open and at work, all but HTTP."""

    context: Context
    doors: list[Door]
    store: Store
    requests: Requests
    backend: Backend
    ownership: Ownership
    readiness: Readiness


@asynccontextmanager
async def open_gateway(
    settings: Settings,
    backend: Backend | None = None,
    metrics: Metrics | None = None,
    *,
    on_fatal: Callable[[str], None] = lambda why: None,
    webhook_again_seconds: float = 10.0,
) -> AsyncIterator[Gateway]:
    """At work inside of it; at its end, what runs is waited for or put back into the queue.

    `on_fatal` is told when another gateway has taken the jobs, and this one has to end. Raises
    `ConfigurationError`.
    """
    metrics = metrics or Metrics()
    backend = backend or open_backend(settings, metrics)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings))
        ownership, store = database.ownership, Store(database)
        requests = Requests(store, open_contents(database.engine), settings.media_max_bytes)
        queue = FairQueue(settings.queue_max, shares(settings.api_keys))
        jobs = Jobs(store, requests, metrics, queue)
        await jobs.start()
        links = Links(settings, await store.fact("link secret", secrets.token_urlsafe(32)))
        context = Context(
            settings, jobs, links, metrics, lambda: ownership.why_not or backend.waiting_for()
        )
        doors = [door(context) for door in DOORS]
        metrics.backend_ready(lambda: backend.waiting_for() is None)
        readiness = Readiness(settings, here=not backend.outlives)
        await stack.enter_async_context(_beside(readiness.watch()))
        stack.push_async_callback(backend.close)
        await backend.start()
        private = settings.allow_private_urls
        webhooks = Webhooks(
            jobs, store, metrics, allow_private=private, again_seconds=webhook_again_seconds
        )
        await stack.enter_async_context(_beside(webhooks.run(doors)))
        await stack.enter_async_context(_beside(sweep(jobs, store, requests, links, settings)))
        dispatcher = Dispatcher(jobs, backend, metrics, settings)
        stack.push_async_callback(dispatcher.close, settings.shutdown_seconds)

        def halt(why: str) -> None:
            dispatcher.halt()
            if ownership.lost:
                on_fatal(why)

        ownership.on_loss, ownership.on_return = halt, dispatcher.go_on
        dispatcher.start()
        stack.callback(jobs.close)
        yield Gateway(context, doors, store, requests, backend, ownership, readiness)


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """`work` as a task, for as long as this is open."""
    task = asyncio.create_task(work)
    task.add_done_callback(_complain)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _complain(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("a part of the gateway has ended", exc_info=error)


def create_app(gateway: Gateway) -> FastAPI:
    """The HTTP side of an open gateway. No page of FastAPI's own: they load scripts of others."""
    context, doors = gateway.context, gateway.doors
    settings = context.settings
    app = DescribedApp(
        [door.router for door in doors],
        title="wan_engine gateway",
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # it would name the host that a proxy was asked by, without https
    )
    open_routes = list(app.routes)  # the document's
    # Only so that the document says it: the guard has looked at the key before.
    bearer = Security(HTTPBearer(auto_error=False, description="A key of WAN_API_KEYS"))
    for door in doors:
        app.include_router(door.router, dependencies=[bearer])
    own = (health.router(context, gateway.store, gateway.readiness), page.router(settings))
    for router in own:
        app.include_router(router)
        open_routes += router.routes
    _add_refusals(app, doors)
    rules = Rules(
        keys=Keys(settings.api_keys),
        rate=RateLimit(settings.rate_limit),
        max_bytes=settings.request_max_bytes,
        origins=settings.cors_origins,
        in_flight=InFlight(settings.in_flight_max_bytes, settings.in_flight_of_key_bytes),
        pace=Pace(settings.head_seconds, settings.body_rate),
        folder=settings.scratch_dir,
    )
    app.add_middleware(
        Guard, doors=doors, open_routes=open_routes, rules=rules, metrics=context.metrics
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=_EXPOSED,
        )
    return app


_CODES: dict[int, Code] = {status: code for code, status in reversed(STATUS.items())}


def _add_refusals(app: FastAPI, doors: list[Door]) -> None:
    """Whatever a route raises is told in the words of the API that its path belongs to."""

    def refuse(request: Request, problem: Problem) -> JSONResponse:
        path = request.url.path
        found = door_of(path, doors)
        return refusal(problem, found[0] if found else None, path)

    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> JSONResponse:
        return refuse(request, error)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, "invalid_request")
        response = refuse(request, Problem(code, str(error.detail)))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first: Any = error.errors()[0]
        sentence = f'field "{first["loc"][-1]}": {first["msg"]}'
        return refuse(request, Problem("invalid_request", sentence))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return refuse(request, Problem("internal_error", "Internal error"))
