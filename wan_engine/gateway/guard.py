"""Before any door is reached: who calls, how often, from which page, and how large the body is.

No route can forget it. Without keys the gateway is for this machine's own programs: what a web page
sends through a browser is refused then, as is a name that somebody made to point here.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wan_engine.gateway.context import Door
from wan_engine.gateway.keys import Keys, RateLimit
from wan_engine.gateway.metrics import Metrics
from wan_engine.gateway.problems import Problem

_BODY_SECONDS = 120.0
_DRAIN_BYTES = 64 * 2**20
_DRAIN_SECONDS = 10.0
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@dataclass(frozen=True)
class Rules:
    keys: Keys
    rate: RateLimit
    max_bytes: int
    public_url: str | None
    origins: tuple[str, ...]


def door_of(path: str, doors: Sequence[Door]) -> tuple[Door, str] | None:
    """The door with the longest prefix of `path`, and the rest of the path."""
    found = [
        (len(prefix), door)
        for door in doors
        for prefix in door.prefixes
        if path == prefix or path.startswith(f"{prefix}/")
    ]
    if not found:
        return None
    length, door = max(found, key=lambda one: one[0])
    return door, path[length:]


def refusal(problem: Problem, door: Door | None, path: str) -> JSONResponse:
    """The answer in the door's own words, with `Retry-After` where that is known."""
    if door is None:
        response = JSONResponse({"error": problem.message}, problem.status)
    else:
        response = door.refuse(problem, path)
    if problem.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(problem.retry_after_seconds)
    if problem.code == "unauthenticated":
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


class Guard:
    """Middleware. Puts the owner into `request.state.owner`."""

    def __init__(self, app: ASGIApp, doors: Sequence[Door], rules: Rules, metrics: Metrics) -> None:
        self._app = app
        self._doors = doors
        self._rules = rules
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = door_of(scope["path"], self._doors) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        door, rest = found
        send = self._counted(door, scope["method"], send)
        headers = Headers(scope=scope)
        body = _Body(headers, receive)
        try:
            _check_page(headers, self._rules)
            owner = self._rules.keys.owner(headers.get("authorization"))
            self._rules.rate.count(owner)
            limits = (self._rules.max_bytes, door.max_bytes(rest) or self._rules.max_bytes)
            replay = _replay(await body.read(min(limits)), receive)
        except Problem as problem:
            await body.drain()
            response = refusal(problem, door, scope["path"])
            response.headers["Connection"] = "close"  # there may be more of the body
            await response(scope, receive, send)
            return
        scope.setdefault("state", {})["owner"] = owner
        await self._app(scope, replay, send)

    def _counted(self, door: Door, method: str, send: Send) -> Send:
        begun = time.perf_counter()
        method = method if method in _METHODS else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                seconds = time.perf_counter() - begun
                self._metrics.answered(door.name, method, message["status"], seconds)
            await send(message)

        return counted


def _check_page(headers: Headers, rules: Rules) -> None:
    """Without keys, only what belongs to this machine may call. Raises `Problem`."""
    if rules.keys:
        return
    host = headers.get("host", "")
    if not _is_here(host, rules):
        raise Problem("forbidden", "Without keys the gateway answers to this machine's name only")
    origin = headers.get("origin")
    if "*" in rules.origins or origin in rules.origins:
        return
    # A browser sends no origin with the GET of a picture or a link, but says where that came from.
    elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
    if elsewhere if origin is None else origin.partition("://")[2] != host:
        raise Problem("forbidden", "Web pages of other origins may not call: see WAN_CORS_ORIGINS")


def _is_here(host: str, rules: Rules) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if rules.public_url is not None and name == urlsplit(rules.public_url).hostname:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


class _Body:
    """The body of one request: read within a bound and handed on, or thrown away."""

    def __init__(self, headers: Headers, receive: Receive) -> None:
        self._headers = headers
        self._receive = receive
        announced = headers.get("content-length", "0")
        self._announced = int(announced[:20]) if re.fullmatch(r"[0-9]+", announced) else 0
        self._whole = self._announced == 0 and "transfer-encoding" not in headers

    async def read(self, max_bytes: int) -> bytes:
        """All of it, announced or not. Raises `Problem`."""
        too_large = Problem("too_large", f"The body is larger than {max_bytes / 2**20:g} MB")
        if self._announced > max_bytes:
            raise too_large
        chunks, size = [], 0
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while (chunk := await self._next()) is not None:
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > max_bytes:
                        raise too_large
        except TimeoutError:
            raise Problem("timeout", f"The body took longer than {_BODY_SECONDS:g} s") from None
        return b"".join(chunks)

    async def drain(self) -> None:
        """Throw away what still comes, within bounds: a client that is cut off while it sends does
        not read why. One that asks before it sends (100-continue) is just answered."""
        if self._headers.get("expect", "").lower() == "100-continue":
            return
        size = 0
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while size <= _DRAIN_BYTES and (chunk := await self._next()) is not None:
                    size += len(chunk)
        except TimeoutError:
            return

    async def _next(self) -> bytes | None:
        if self._whole:
            return None
        message = await self._receive()
        self._whole = not message.get("more_body", False)  # also where the caller is gone
        return bytes(message.get("body", b""))


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
