"""What a door gets, and what a door is. A new hosted API is one file with a function that makes a
`Door`, and its line in `app.py`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NoReturn

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from wan_engine.gateway.job import Job
from wan_engine.gateway.jobs import Jobs
from wan_engine.gateway.links import Links
from wan_engine.gateway.metrics import Metrics
from wan_engine.gateway.problems import Problem
from wan_engine.pricing import cost
from wan_engine.settings import Settings


@dataclass(frozen=True)
class Context:
    """Everything that a door may use.

    The owner of a request is `request.state.owner`: the name of its key, checked before any route
    is reached; hand it to every call of `jobs`, which then finds that owner's jobs only.
    """

    settings: Settings
    jobs: Jobs
    links: Links
    metrics: Metrics
    waiting_for: Callable[[], str | None]
    """What rendering waits for, in words for the operator; None when it can begin."""

    def price(self, size: str, seconds: int) -> Decimal:
        """USD for a clip of `size` ("1280*720" or "1920*1080")."""
        return cost(size, seconds, self.settings.prices)

    def base_url(self, request: Request) -> str:
        """Where this caller reaches the gateway, without a slash at the end."""
        return (self.settings.public_url or str(request.base_url)).rstrip("/")


@dataclass(frozen=True)
class Door:
    """One hosted API: `prefixes` are the paths that are its own, `refuse` is how it says no, told
    the path that was asked for.

    `max_bytes` gives the largest body by the rest of a path after the prefix, where the API has
    limits of its own; `webhook_body` what a finished job's webhook is told.
    """

    name: str
    prefixes: tuple[str, ...]
    router: APIRouter
    refuse: Callable[[Problem, str], JSONResponse]
    max_bytes: Callable[[str], int | None] = lambda path: None
    webhook_body: Callable[[Job, dict[str, Any]], dict[str, Any]] | None = None


async def read_json(request: Request) -> Any:
    """The body as JSON, whatever its content type says, its size checked before. Raises `Problem`,
    also for NaN and 1e999, which no answer could say. Halves of surrogate pairs become question
    marks, as no answer could be encoded with them."""
    # Not `request.body()`, which keeps it for as long as the caller waits for an answer.
    body = b"".join([chunk async for chunk in request.stream()])
    if sum(body.count(mark) for mark in _MARKS) > _MARKS_MOST:
        raise Problem("invalid_request", "The body has too many values")
    try:
        found = json.loads(
            body.decode("utf-8-sig"), parse_constant=_no_constant, parse_float=_finite
        )
        return _encodable(found) if _SURROGATE.search(body) else found
    except (ValueError, RecursionError):
        raise Problem("invalid_request", "The body is not valid JSON") from None


# Where there is a value there is one of these. Millions of them parse to gigabytes, and for seconds
# nobody else is answered. No request has a hundred, and base64 none.
_MARKS = (b"[", b"{", b",")
_MARKS_MOST = 10_000
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _no_constant(digits)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
