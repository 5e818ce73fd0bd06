"""Builds the gateway, and opens its parts in the order in which a job passes through them.

POST /v2/wan-2-6-i2v/run
  http/connection.py      limits the bytes and seconds of a request
  http/guard.py           checks the key, its rate and the size of the body
  doors/runpod/door.py    `run` reads the body and submits a `NewJob`
  jobs/service.py         `Jobs.submit` checks the request and reserves a place in the queue
  jobs/kept_requests.py   `Requests.add` stores its media, within the quota of the key
  jobs/store.py           `Store.add` stores job and request; from now on, the job will end
  jobs/fair_queue.py      the job waits for its turn
  jobs/dispatch.py        `Dispatcher._run` claims it and passes it to the backend as `Work`
  backends/own_engine.py  `LocalBackend.run` sends it to `engine_process.py`, which renders it,
  backends/endpoint.py    or `EndpointBackend.run` sends it to Runpod and polls it
  jobs/service.py         `Jobs.complete` or `Jobs.fail` stores the result and wakes waiting callers
GET /v2/wan-2-6-i2v/status/ID
  doors/runpod/door.py    `status` finds the job and returns its state
  links.py                `Links.output` is its result, with a URL for this caller
in the background
  jobs/webhooks.py        sends results to webhooks
  jobs/sweep.py           ends late jobs, deletes old ones
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer
from starlette.middleware.cors import CORSMiddleware

from wan_engine.gateway.backends import Backend, open_backend
from wan_engine.gateway.background import background
from wan_engine.gateway.door import Door
from wan_engine.gateway.doors.aiml import door as aiml_door
from wan_engine.gateway.doors.context import Context
from wan_engine.gateway.doors.dashscope import door as dashscope_door
from wan_engine.gateway.doors.openai import door as openai_door
from wan_engine.gateway.doors.oxen import door as oxen_door
from wan_engine.gateway.doors.runpod import door as runpod_door
from wan_engine.gateway.http import health
from wan_engine.gateway.http.answers import add_answers
from wan_engine.gateway.http.budget import InFlight, Pace
from wan_engine.gateway.http.guard import Guard, Rules
from wan_engine.gateway.jobs.database import open_database
from wan_engine.gateway.jobs.dispatch import Dispatcher
from wan_engine.gateway.jobs.fair_queue import FairQueue
from wan_engine.gateway.jobs.kept_requests import Requests
from wan_engine.gateway.jobs.long_texts import open_long_texts
from wan_engine.gateway.jobs.ownership import Ownership
from wan_engine.gateway.jobs.service import Jobs
from wan_engine.gateway.jobs.store import Store
from wan_engine.gateway.jobs.sweep import sweep
from wan_engine.gateway.jobs.webhooks import Webhooks
from wan_engine.gateway.keys import Keys, RateLimit, shares
from wan_engine.gateway.links import Links
from wan_engine.gateway.metrics import Metrics
from wan_engine.gateway.openapi import DescribedApp
from wan_engine.gateway.playground import door as playground
from wan_engine.gateway.playground import page
from wan_engine.gateway.readiness import Readiness
from wan_engine.gateway.refusals import Refusal
from wan_engine.settings import VERSION, Settings

DOORS: tuple[Callable[[Context], Door], ...] = (
    runpod_door.door,
    aiml_door.door,
    oxen_door.door,
    dashscope_door.door,
    openai_door.door,
)
"""The hosted APIs that the gateway serves."""

_EXPOSED = ("Retry-After", "Content-Range", "Accept-Ranges", "ETag", "openai-poll-after-ms")


@dataclass
class Gateway:
    """The open parts of the gateway, without HTTP."""

    context: Context
    doors: list[Door]
    store: Store
    requests: Requests
    backend: Backend
    ownership: Ownership
    readiness: Readiness
    metrics: Metrics

    async def waiting_for(self) -> list[str]:
        """The reason why a job would not be accepted, rendered and stored now; empty if it
        would."""
        reasons = [self.context.waiting_for(), *self.readiness.lacking()]
        try:
            await self.store.ping()
        except Refusal:
            reasons.append("the database cannot be reached")
        return [reason for reason in reasons if reason]


@asynccontextmanager
async def open_gateway(
    settings: Settings,
    backend: Backend | None = None,
    metrics: Metrics | None = None,
    *,
    on_fatal: Callable[[str], None] = lambda why: None,
    webhook_again_seconds: float = 10.0,
) -> AsyncIterator[Gateway]:
    """Run the gateway inside the block. At its end, running jobs are awaited or go back into the
    queue.

    `on_fatal` is called if another gateway has taken the jobs, so this one must end. Raises
    `ConfigurationError`.
    """
    metrics = metrics or Metrics()
    backend = backend or open_backend(settings, metrics)
    async with AsyncExitStack() as stack:
        # 1. The jobs, in a database that this gateway owns, and in a queue.
        database = await stack.enter_async_context(open_database(settings))
        ownership, store = database.ownership, Store(database)
        requests = Requests(store, open_long_texts(database), settings.media_max_bytes)
        queue = FairQueue(settings.queue_max, shares(settings.api_keys))
        jobs = Jobs(store, requests, metrics, queue)
        await jobs.start()

        # 2. The doors, which submit and show jobs.
        links = Links(settings, await store.fact("link secret", secrets.token_urlsafe(32)))
        context = Context(
            settings,
            jobs,
            links,
            waiting_for=lambda: ownership.why_not or backend.waiting_for(),
            models=lambda: backend.models,
            takes=lambda: backend.takes,
            loras=lambda: backend.loras,
        )
        doors = [door(context) for door in DOORS]

        # 3. The backend, which renders jobs once it is ready.
        metrics.backend_ready(lambda: backend.waiting_for() is None)
        readiness = Readiness(settings, here=not backend.outlives)
        await stack.enter_async_context(background(readiness.watch()))
        stack.push_async_callback(backend.close)
        await backend.start()

        # 4. Webhooks and cleaning, for jobs that have ended.
        private = settings.allow_private_urls
        webhooks = Webhooks(
            jobs, store, metrics, allow_private=private, again_seconds=webhook_again_seconds
        )
        await stack.enter_async_context(background(webhooks.run(doors)))
        await stack.enter_async_context(background(sweep(jobs, store, requests, links, settings)))

        # 5. The dispatcher, which takes jobs from the queue while this gateway owns them.
        dispatcher = Dispatcher(jobs, backend, metrics, settings)
        stack.push_async_callback(dispatcher.close, settings.shutdown_seconds)

        def halt(why: str) -> None:
            dispatcher.halt()
            if ownership.lost:
                on_fatal(why)

        ownership.on_loss, ownership.on_return = halt, dispatcher.go_on
        dispatcher.start()
        stack.callback(jobs.close)
        yield Gateway(context, doors, store, requests, backend, ownership, readiness, metrics)


def create_app(gateway: Gateway) -> FastAPI:
    """The HTTP side of an open gateway. FastAPI's own pages are off, because they load scripts of
    others."""
    settings = gateway.context.settings
    doors = [*gateway.doors, playground.door(gateway.context)]
    app = DescribedApp(
        [door.router for door in doors],
        title="wan_engine gateway",
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # redirects would name the host behind a proxy, without https
    )
    open_routes = list(app.routes)  # the document's
    # For the document only: the guard has checked the key before.
    bearer = Security(HTTPBearer(auto_error=False, description="A key of WAN_API_KEYS"))
    for door in doors:
        app.include_router(door.router, dependencies=[bearer])
    own = (
        health.router(
            gateway.waiting_for, gateway.context.models, gateway.metrics, gateway.context.links
        ),
        page.router(settings),
    )
    for router in own:
        app.include_router(router)
        open_routes += router.routes
    add_answers(app, doors)
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
        Guard, doors=doors, open_routes=open_routes, rules=rules, metrics=gateway.metrics
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
