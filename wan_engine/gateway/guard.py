"""Before any door is reached: the key, the rate, the size of the body. No route can forget them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wan_engine.gateway.context import Door
from wan_engine.gateway.keys import Keys, RateLimit
from wan_engine.gateway.metrics import Metrics
from wan_engine.gateway.problems import Problem


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


class Guard:
    """Middleware. Puts the owner into `request.state.owner`."""

    def __init__(
        self,
        app: ASGIApp,
        doors: Sequence[Door],
        keys: Keys,
        rate: RateLimit,
        metrics: Metrics,
        max_bytes: int,
    ) -> None:
        self._app = app
        self._doors = doors
        self._keys = keys
        self._rate = rate
        self._metrics = metrics
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = door_of(scope["path"], self._doors) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        door, rest = found
        send = self._counted(door, scope["method"], send)
        try:
            headers = Headers(scope=scope)
            owner = self._keys.owner(headers.get("authorization"))
            self._rate.count(owner)
            limits = (self._max_bytes, door.max_bytes(rest) or self._max_bytes)
            receive = await _whole_body(headers, receive, min(limits))
        except Problem as problem:
            response = door.refuse(problem)
            response.headers["Connection"] = "close"  # what was not read of the body is dropped
            await response(scope, receive, send)
            return
        scope.setdefault("state", {})["owner"] = owner
        await self._app(scope, receive, send)

    def _counted(self, door: Door, method: str, send: Send) -> Send:
        begun = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                seconds = time.perf_counter() - begun
                self._metrics.answered(door.name, method, message["status"], seconds)
            await send(message)

        return counted


async def _whole_body(headers: Headers, receive: Receive, max_bytes: int) -> Receive:
    """The body, read up to `max_bytes` and handed on at once. Raises `Problem` "too_large"."""
    too_large = Problem("too_large", f"The body is larger than {max_bytes / 2**20:g} MB")
    announced = headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > max_bytes:
        raise too_large
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > max_bytes:
            raise too_large
        more = message.get("more_body", False)
    body: Message = {"type": "http.request", "body": b"".join(chunks), "more_body": False}
    waiting = [body]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
