"""Checks every call before a door sees it: the caller's key, rate, origin and body size.

No route can skip these checks. Every path that the router gives to a door passes here, and every
other path is answered here. Without keys the gateway serves only programs on this machine. It
refuses web pages in a browser, host names that point to this machine, and requests that a proxy
forwards.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wan_engine.gateway.door import Door
from wan_engine.gateway.http.answers import answer_to, door_of
from wan_engine.gateway.http.body import Body
from wan_engine.gateway.http.budget import Held, InFlight, Pace
from wan_engine.gateway.keys import Keys, RateLimit
from wan_engine.gateway.loopback import is_loopback
from wan_engine.gateway.metrics import Metrics
from wan_engine.gateway.refusals import Refusal

_LARGE_AT_ONCE = 1
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@dataclass(frozen=True)
class Rules:
    """The limits for every caller."""

    keys: Keys
    rate: RateLimit
    max_bytes: int
    origins: tuple[str, ...]
    in_flight: InFlight
    pace: Pace
    folder: Path | None
    """The folder for large bodies while they arrive; by default the one of the system."""


class Guard:
    """Middleware that puts the owner and the body into `request.state`.

    `open_routes` need no key, and their bodies are not read.
    """

    def __init__(
        self,
        app: ASGIApp,
        doors: Sequence[Door],
        open_routes: Sequence[BaseRoute],
        rules: Rules,
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._doors = doors
        self._open_routes = open_routes
        self._rules = rules
        self._metrics = metrics
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        scope = self._without_slash(scope)
        door, match = self._place(scope)
        if door is not None:
            send = self._counted(door, scope["method"], send)
        body = Body(Headers(scope=scope), receive, self._large, self._rules.folder)
        try:
            _check_path(scope["path"])
            _check_proxy(scope, self._rules)
            if door is not None:
                await self._enter(door, match, scope, body)
            elif match is Match.NONE:
                raise Refusal("not_found", "Not Found")
        except Refusal as refusal:
            body.close()
            # The connection discards the rest of the body. A caller that is cut off while it sends
            # would not read the refusal.
            response = answer_to(refusal, door, scope["path"])
            if body.is_asked_for or refusal.code == "timeout":
                response.headers["Connection"] = "close"  # the body may still arrive, or not
            await response(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            body.close()

    def _without_slash(self, scope: Scope) -> Scope:
        """Treat a path of a door with a slash at its end as the same route."""
        path = scope["path"]
        if len(path) < 2 or not path.endswith("/") or door_of(path, self._doors) is None:
            return scope
        return {**scope, "path": path[:-1]}

    def _place(self, scope: Scope) -> tuple[Door | None, Match]:
        """Return the door of a path as the router matches it. A path without a route also gets a
        door, which formats the refusal."""
        for door in self._doors:
            if (match := _best(door.router.routes, scope)) is not Match.NONE:
                return door, match
        if (match := _best(self._open_routes, scope)) is not Match.NONE:
            return None, match
        found = door_of(scope["path"], self._doors)
        return (found[0] if found else None), Match.NONE

    async def _enter(self, door: Door, match: Match, scope: Scope, body: Body) -> None:
        """Raises `Refusal`."""
        rules, headers = self._rules, Headers(scope=scope)
        _check_page(headers, rules)
        owner = rules.keys.owner(headers.get("authorization"))
        rules.rate.count(owner)
        if match is Match.NONE:
            raise Refusal("not_found", "Not Found")
        if match is Match.PARTIAL:
            allowed = _methods(door.router.routes, scope)
            raise Refusal("method_not_allowed", "Method Not Allowed", allowed=allowed)
        found = door_of(scope["path"], [door])
        of_door = door.max_bytes(found[1]) if found else None
        most = min(rules.max_bytes, of_door or rules.max_bytes)
        await body.read(most, rules.pace, Held(rules.in_flight, owner))
        scope.setdefault("state", {}).update(owner=owner, body=body)

    def _counted(self, door: Door, method: str, send: Send) -> Send:
        begun = time.perf_counter()
        method = method if method in _METHODS else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                seconds = time.perf_counter() - begun
                self._metrics.answered(door.name, method, message["status"], seconds)
            await send(message)

        return counted


def _best(routes: Sequence[BaseRoute], scope: Scope) -> Match:
    """Return the router's own match."""
    return max((route.matches(scope)[0] for route in routes), key=lambda match: match.value)


def _methods(routes: Sequence[BaseRoute], scope: Scope) -> tuple[str, ...]:
    """Return all methods that the path accepts. The router reports those of one route only."""
    found = [
        route.methods or ()
        for route in routes
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE
    ]
    return tuple(sorted({method for methods in found for method in methods}))


def _check_path(path: str) -> None:
    """Raise `Refusal` for a path with line breaks, other control characters or bytes that are not
    text."""
    if not path.startswith("/") or not path.isprintable() or "\ufffd" in path:
        raise Refusal("invalid_request", "The path is not valid")


_HANDED_ON = (
    *("forwarded", "via", "true-client-ip", "x-real-ip", "x-client-ip", "x-cluster-client-ip"),
    *("x-forwarded-", "x-original-", "x-envoy-", "x-azure-", "x-amz", "x-cloud-trace-context"),
    *("cf-", "fastly-", "fly-", "ngrok-", "tailscale-"),
)
"""Prefixes of headers that only proxies and tunnels send."""


def _check_proxy(scope: Scope, rules: Rules) -> None:
    """Without keys, refuse requests through a proxy, because anybody may have sent them. Raises
    `Refusal`."""
    names = () if rules.keys else [name.decode("latin-1").lower() for name, _ in scope["headers"]]
    if any(name.startswith(_HANDED_ON) for name in names):
        raise Refusal("forbidden", "Without keys the gateway does not answer through a proxy")


def _check_page(headers: Headers, rules: Rules) -> None:
    """Without keys, refuse every request that does not come from this machine. Raises `Refusal`."""
    if rules.keys:
        return
    host = headers.get("host", "")
    if not _is_here(host):
        raise Refusal("forbidden", "Without keys, the gateway accepts requests to localhost only")
    origin = headers.get("origin")
    if "*" in rules.origins or origin in rules.origins:
        return
    # A browser sends no origin with a GET for a picture or a link, but sends the site of the page.
    elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
    if elsewhere if origin is None else origin.partition("://")[2] != host:
        raise Refusal("forbidden", "Web pages of other origins may not call: see WAN_CORS_ORIGINS")


def _is_here(host: str) -> bool:
    """Whether a `Host` header, perhaps with a port, names this machine."""
    try:
        parts = urlsplit(f"//{host}")
        return (
            parts.port != 0 and set(host).isdisjoint("@/?#") and is_loopback(parts.hostname or "")
        )
    except ValueError:
        return False
