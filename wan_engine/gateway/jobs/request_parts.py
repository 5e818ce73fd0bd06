"""A request apart: what is small, which is a row of the database, and the long texts in it, most of
them pictures, each of which is kept once by its content.

No reference is within the request, where a caller could write one to another's picture.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wan_engine.gateway.excerpt import begin, brief
from wan_engine.gateway.refusals import Problem

_ROW_MAX_CHARACTERS = 8 * 1024
_LONG_CHARACTERS = 4096
_PARTS = 8
_DEEPEST = 64
_PLACE_MAX_CHARACTERS = 512
_ENCODING = ("utf-8", "surrogatepass")
_ALL = "[]"
"""The place of what is left of a request without its parts, where that is too large for a row."""


@dataclass(frozen=True)
class Content:
    """A long text, named by the SHA-256 of its `size` bytes."""

    text: str
    hash: str
    size: int

    @classmethod
    def of(cls, text: str) -> Content:
        data = text.encode(*_ENCODING)
        return cls(text, hashlib.sha256(data).hexdigest(), len(data))

    def data(self) -> bytes:
        """The bytes, made anew so that they are not kept beside the text."""
        return self.text.encode(*_ENCODING)


def checked(name: str, data: bytes) -> str | None:
    """The text of a content's bytes, or None when they are not those that were stored."""
    right = hashlib.sha256(data).hexdigest() == name
    return data.decode(*_ENCODING) if right else None


@dataclass(frozen=True)
class Parted:
    """`shown` is the request with the begin only of long texts, `row` what of that is small
    enough to be kept, `contents` what is kept elsewhere, by its place."""

    shown: dict[str, Any]
    row: dict[str, Any]
    contents: dict[str, Content]


async def parted(request: Mapping[str, Any]) -> Parted:
    """Raises `Problem` where the request is nested so deeply that nobody means it."""
    plain = len(request) <= 50 and all(map(_is_plain, request.values()))
    return part(request) if plain else await asyncio.to_thread(part, request)


def part(request: Mapping[str, Any]) -> Parted:
    """The same, at once."""
    long: dict[str, str] = {}
    shown = _without(request, (), long, None)
    places = [place for place in long if len(place) <= _PLACE_MAX_CHARACTERS]
    largest = sorted(places, key=lambda place: len(long[place]), reverse=True)[:_PARTS]
    contents = {place: Content.of(long[place]) for place in largest}
    row, rest = shown, shown
    if len(contents) < len(long):
        rest = _without(request, (), {}, contents.keys())
    text = _json(rest)
    if len(text) > _ROW_MAX_CHARACTERS:
        row = brief(shown)
        contents[_ALL] = Content.of(text)
    return Parted(shown, row, contents)


def whole(row: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    """The request again, of a row and the texts by their places."""
    request: Any = json.loads(texts[_ALL]) if _ALL in texts else _without(row, (), {}, ())
    for place, text in texts.items():
        *way, last = json.loads(place) or [None]
        if last is None:
            continue
        where = request
        for step in way:
            where = where[step]
        where[last] = text
    return dict(request)


def _without(value: Any, way: tuple[str | int, ...], long: dict[str, str], only: Any) -> Any:
    """A copy of `value` with the begins only of long texts, which are put into `long`; of those at
    the places `only`, unless that is None."""
    if isinstance(value, str) and len(value) > _LONG_CHARACTERS:
        place = json.dumps(way)
        if only is not None and place not in only:
            return value
        long[place] = value
        return begin(value)
    if not isinstance(value, Mapping | list):
        return value
    if len(way) >= _DEEPEST:
        raise Problem("invalid_request", f"The request is nested more than {_DEEPEST} deep")
    if isinstance(value, list):
        return [_without(one, (*way, at), long, only) for at, one in enumerate(value)]
    return {key: _without(one, (*way, key), long, only) for key, one in value.items()}


def _json(value: object) -> str:
    """In small steps, so that a thread that does it lets others go on."""
    return "".join(json.JSONEncoder().iterencode(value))


def _is_plain(value: object) -> bool:
    short = isinstance(value, str) and len(value) <= _LONG_CHARACTERS
    return short or value is None or isinstance(value, int | float)
