"""Turns every exception into an answer in the words of the API whose path was called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from wan_engine.gateway.door import Door
from wan_engine.gateway.refusals import HTTP_STATUS, Refusal, RefusalCode

_CODES: dict[int, RefusalCode] = {status: code for code, status in reversed(HTTP_STATUS.items())}


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


def answer_to(refusal: Refusal, door: Door | None, path: str) -> JSONResponse:
    """The door's answer, or a plain one; with the headers that the refusal knows of."""
    if door is None:
        response = JSONResponse({"error": refusal.message}, refusal.status)
    else:
        response = door.refuse(refusal, path)
    if refusal.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(refusal.retry_after_seconds)
    if refusal.allowed:
        response.headers["Allow"] = ", ".join(refusal.allowed)
    if refusal.code == "unauthenticated":
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def add_answers(app: FastAPI, doors: Sequence[Door]) -> None:
    """Handle every exception that a route of `app` raises."""

    def answer(request: Request, refusal: Refusal) -> JSONResponse:
        path = request.url.path
        found = door_of(path, doors)
        return answer_to(refusal, found[0] if found else None, path)

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> JSONResponse:
        return answer(request, error)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, "invalid_request")
        response = answer(request, Refusal(code, str(error.detail)))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first: Any = error.errors()[0]
        sentence = f'field "{first["loc"][-1]}": {first["msg"]}'
        return answer(request, Refusal("invalid_request", sentence))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return answer(request, Refusal("internal_error", "Internal error"))
