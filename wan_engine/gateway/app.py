"""The application: opens the database, starts the backend, and puts the doors behind the guard."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from wan_engine.gateway import runpod_door
from wan_engine.gateway.backends import Backend, open_backend
from wan_engine.gateway.context import Context, Door
from wan_engine.gateway.database import open_database
from wan_engine.gateway.dispatch import Dispatcher
from wan_engine.gateway.guard import Guard, door_of
from wan_engine.gateway.jobs import Jobs
from wan_engine.gateway.keys import Keys, RateLimit
from wan_engine.gateway.links import PATH, Links
from wan_engine.gateway.metrics import Metrics
from wan_engine.gateway.problems import STATUS, Code, Problem
from wan_engine.gateway.store import Store
from wan_engine.settings import VERSION, Settings

log = logging.getLogger(__name__)

DOORS: tuple[Callable[[Context], Door], ...] = (runpod_door.door,)
"""Every hosted API that is served."""


@dataclass
class Gateway:
    """What is open while the application runs: `context` for the doors, the rest to start and end
    it."""

    context: Context
    backend: Backend
    dispatcher: Dispatcher


@asynccontextmanager
async def open_gateway(
    settings: Settings, backend: Backend | None = None, metrics: Metrics | None = None
) -> AsyncIterator[Gateway]:
    """Everything but HTTP: at work inside, ended and stored after it. Raises
    `ConfigurationError`."""
    metrics = metrics or Metrics()
    backend = backend or open_backend(settings, metrics)
    async with AsyncExitStack() as stack:
        store = Store(await stack.enter_async_context(open_database(settings)))
        jobs = Jobs(store, metrics, queue_max=settings.queue_max)
        await jobs.start()
        secret = await store.fact("link secret", secrets.token_urlsafe(32))
        context = Context(settings, jobs, Links(settings, secret), metrics)
        dispatcher = Dispatcher(jobs, backend, metrics, settings)
        metrics.backend_ready(lambda: backend.waiting_for() is None)
        stack.push_async_callback(backend.close)
        await backend.start()
        stack.push_async_callback(dispatcher.close, settings.shutdown_seconds)
        dispatcher.start()
        stack.callback(jobs.close)
        yield Gateway(context, backend, dispatcher)


def create_app(gateway: Gateway) -> FastAPI:
    """The HTTP side of an open gateway."""
    context = gateway.context
    settings = context.settings
    doors = [door(context) for door in DOORS]
    app = FastAPI(title="wan_engine gateway", version=VERSION)
    for door in doors:
        app.include_router(door.router)
    _add_own_routes(app, gateway)
    _add_refusals(app, doors)
    app.add_middleware(
        Guard,
        doors=doors,
        keys=Keys(settings.api_keys),
        rate=RateLimit(settings.rate_limit),
        metrics=context.metrics,
        max_bytes=settings.request_max_bytes,
    )
    return app


def _add_own_routes(app: FastAPI, gateway: Gateway) -> None:
    links = gateway.context.links

    @app.api_route(PATH + "/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def result(name: str, expires: str = "", signature: str = "") -> Response:
        return links.serve(name, expires, signature)


_CODES: dict[int, Code] = {status: code for code, status in reversed(STATUS.items())}


def _add_refusals(app: FastAPI, doors: list[Door]) -> None:
    """Whatever a route raises is told in the words of the API that its path belongs to."""

    def refuse(request: Request, problem: Problem) -> JSONResponse:
        found = door_of(request.url.path, doors)
        if found is None:
            response = JSONResponse({"error": problem.message}, problem.status)
        else:
            response = found[0].refuse(problem)
        if problem.retry_after_seconds is not None:
            response.headers["Retry-After"] = str(problem.retry_after_seconds)
        return response

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
        where = first["loc"][-1]
        return refuse(request, Problem("invalid_request", f'field "{where}": {first["msg"]}'))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return refuse(request, Problem("internal_error", "Internal error"))
