"""Reads the body of a request up to a limit. A large body is written to the disk, and parsed
outside the event loop."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import tempfile
from codecs import BOM_UTF8
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.types import Receive

from wan_engine.gateway.http.budget import Deadline, Held, Pace
from wan_engine.gateway.http.form import Form, is_form, parse_form
from wan_engine.gateway.refusals import Refusal

log = logging.getLogger(__name__)

Parsed = TypeVar("Parsed")

_LARGE_BYTES = 2**20

# Each value in JSON contains one of these characters. Millions of values take gigabytes to parse,
# and block the gateway for seconds. No real request has a hundred of them, and base64 has none.
_MARKS = (b"[", b"{", b",")
_MARKS_MOST = 10_000
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Body:
    """The body of one request. `large` allows one large body at a time in memory until it is
    stored, because it takes several times its size there, and because threads that parse slow the
    event loop down."""

    def __init__(
        self, headers: Headers, receive: Receive, large: asyncio.Semaphore, folder: Path | None
    ) -> None:
        self._headers = headers
        self._receive = receive
        self._large = large
        self._in_memory = False
        self._folder = folder
        announced = headers.get("content-length", "0")
        self._announced = int(announced[:20]) if re.fullmatch(r"[0-9]+", announced) else 0
        self._complete = self._announced == 0 and "transfer-encoding" not in headers
        self._held: Held | None = None
        self._file: IO[bytes] | None = None
        self._recent: list[bytes] = []  # the part that is not in the file
        self._recent_bytes = 0

    # --- receiving -------------------------------------------------------------------------------

    async def read(self, max_bytes: int, pace: Pace, held: Held) -> None:
        """Receive the whole body at this pace, with or without a content length, and count it in
        `held`. Raises `Refusal`."""
        self._held = held
        too_large = Refusal("too_large", f"The body is larger than {max_bytes / 2**20:g} MB")
        if self._announced > max_bytes:
            raise too_large
        held.grow(self._announced)
        clock = asyncio.get_running_loop().time
        size, deadline = 0, pace.body(clock())
        while (chunk := await self._next(deadline)) is not None:
            size += len(chunk)
            if size > max_bytes:
                raise too_large
            held.grow(size)
            come = clock()
            deadline.extend(len(chunk), come)
            await self._keep(chunk)
            deadline.wait(clock() - come)

    @property
    def is_asked_for(self) -> bool:
        """Whether the caller waits for permission before it sends the body (100-continue)."""
        return self._headers.get("expect", "").lower() == "100-continue"

    def close(self) -> None:
        """Free the body, once the request is stored or refused."""
        if self._held is not None:
            self._held.release()
        if self._in_memory:
            self._large.release()
            self._in_memory = False
        self._forget()

    async def _next(self, deadline: Deadline) -> bytes | None:
        if self._complete:
            return None
        try:
            async with asyncio.timeout_at(deadline.at):
                message = await self._receive()
        except TimeoutError:
            raise Refusal("timeout", "The body of the request arrived too slowly") from None
        if message["type"] == "http.disconnect":  # an incomplete body is not a request
            raise Refusal("invalid_request", "The body is incomplete")
        self._complete = not message.get("more_body", False)
        return bytes(message.get("body", b""))

    async def _keep(self, chunk: bytes) -> None:
        self._recent.append(chunk)
        self._recent_bytes += len(chunk)
        if self._recent_bytes > _LARGE_BYTES:
            recent, self._recent, self._recent_bytes = self._recent, [], 0
            await asyncio.to_thread(self._write, recent)

    def _write(self, chunks: list[bytes]) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            self._file.writelines(chunks)
        except OSError as error:
            log.error("the body of a request cannot be written to the disk: %s", error)
            sentence = "The gateway cannot receive large requests now, try again later"
            raise Refusal("unavailable", sentence, 60) from error

    def _forget(self) -> None:
        self._recent, self._recent_bytes = [], 0
        if self._file is not None:
            with suppress(OSError):  # unwritten data is no longer needed
                self._file.close()
            self._file = None

    # --- reading ---------------------------------------------------------------------------------

    async def json(self) -> Any:
        """Parse the body, once. Raises `Refusal`, also for NaN and 1e999, which an answer cannot
        contain. Unpaired surrogates become question marks, because an answer cannot encode them."""
        return await self._parsed(parse_json)

    async def form(self) -> Form:
        """Parse the body once, as a form of its content type. Raises `Refusal`."""
        content_type = self._headers.get("content-type", "")
        return await self._parsed(lambda body: parse_form(content_type, body))

    @property
    def is_form(self) -> bool:
        return is_form(self._headers.get("content-type", ""))

    async def _parsed(self, parse: Callable[[bytes], Parsed]) -> Parsed:
        try:
            if self._file is None:
                return parse(b"".join(self._recent))
            await self._large.acquire()
            self._in_memory = True
            return await asyncio.to_thread(lambda: parse(self._all()))
        finally:
            self._forget()

    def _all(self) -> bytes:
        assert self._file is not None
        self._file.writelines(self._recent)
        self._recent = []
        self._file.seek(0)
        return self._file.read()


def parse_json(body: bytes) -> Any:
    """Parse a body. Raises `Refusal`."""
    if sum(body.count(mark) for mark in _MARKS) > _MARKS_MOST:
        raise Refusal("invalid_request", "The body has too many values")
    odd = _SURROGATE.search(body)
    try:
        if len(body) > _LARGE_BYTES and not odd:
            return _checked(from_json(body.removeprefix(BOM_UTF8), allow_inf_nan=False))
        text = body.decode("utf-8-sig")
        found = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
        return _encodable(found) if odd else found
    except (ValueError, RecursionError):
        raise Refusal("invalid_request", "The body is not valid JSON") from None


def _checked(value: Any) -> Any:
    """Check the result of the faster parser, which accepts 1e999. Raises `ValueError`."""
    if isinstance(value, float):
        return _finite(repr(value))
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            _checked(one)
    return value


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
