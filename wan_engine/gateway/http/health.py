"""The gateway's own routes: health, readiness, metrics, and the clips that it serves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from wan_engine.gateway.links import PATH, Links
from wan_engine.gateway.metrics import Metrics
from wan_engine.schema import Task


def router(
    waiting_for: Callable[[], Awaitable[list[str]]],
    models: Callable[[], Mapping[Task, str] | None],
    measured: Metrics,
    links: Links,
) -> APIRouter:
    """Return the routes. `waiting_for` returns why a job could not be accepted, rendered and stored
    now. `models` returns the models, once they are known."""
    routes = APIRouter(tags=["Gateway"])

    @routes.get("/healthz")
    async def healthz() -> JSONResponse:
        """Returns 200 while this process answers."""
        return JSONResponse({"status": "ok"})

    @routes.get("/readyz", responses={503: {"description": "Not ready, with the reason"}})
    async def readyz() -> JSONResponse:
        """Returns 200 if a job would be accepted, rendered and stored now. Lists the models by task
        once they are known."""
        reasons = await waiting_for()
        body: dict[str, Any] = {"ready": not reasons, "waiting_for": reasons}
        if (known := models()) is not None:
            body["models"] = dict(known)
        return JSONResponse(body, 503 if reasons else 200)

    @routes.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Returns the metrics for Prometheus."""
        return Response(measured.text(), media_type=CONTENT_TYPE_LATEST)

    @routes.head(PATH + "/{name}", include_in_schema=False)
    @routes.get(PATH + "/{name}", response_class=Response)
    async def result(name: str, expires: str = "", signature: str = "") -> Response:
        """Returns a finished clip, by the signed link of its job. Supports Range requests."""
        return links.serve(name, expires, signature)

    return routes
