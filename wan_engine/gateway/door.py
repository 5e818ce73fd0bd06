"""Defines a door: one hosted API in front of the jobs. The doors themselves are in `doors/`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse

from wan_engine.gateway.job import Job
from wan_engine.gateway.refusals import Refusal


@dataclass(frozen=True)
class Door:
    """One hosted API. `prefixes` are the paths that belong to it. `refuse` answers a refused call
    of a path in the words of the API.

    `max_bytes` returns the largest body by the rest of a path after the prefix, if the API has its
    own limits. `webhook_body` makes the body of a webhook from an ended job and its request;
    without it, the API has no webhooks.
    """

    name: str
    prefixes: tuple[str, ...]
    router: APIRouter
    refuse: Callable[[Refusal, str], JSONResponse]
    max_bytes: Callable[[str], int | None] = lambda path: None
    webhook_body: Callable[[Job, dict[str, Any]], dict[str, Any]] | None = None
