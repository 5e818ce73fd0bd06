"""Splits a request into a small part, which is a row of the database, and its long texts, mostly
pictures, each stored once by its hash.

The small part does not name the texts, because a caller could write the hash of another caller's
picture into it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wan_engine.gateway.excerpt import beginning, excerpt
from wan_engine.gateway.refusals import Refusal

_ROW_MAX_CHARACTERS = 8 * 1024
_LONG_CHARACTERS = 4096
_MOST = 8
_DEEPEST = 64
_PLACE_MAX_CHARACTERS = 512
_ENCODING = ("utf-8", "surrogatepass")
_ALL = "[]"
"""The place of the small part itself, if it is too large for a row."""


@dataclass(frozen=True)
class LongText:
    """A long text, named by the SHA-256 of its `size` bytes."""

    text: str
    hash: str
    size: int

    @classmethod
    def of(cls, text: str) -> LongText:
        data = text.encode(*_ENCODING)
        return cls(text, hashlib.sha256(data).hexdigest(), len(data))

    def data(self) -> bytes:
        """Return the bytes. They are encoded again each time, so that memory does not hold them in
        addition to the text."""
        return self.text.encode(*_ENCODING)


def verified_text(name: str, data: bytes) -> str | None:
    """The text of the bytes stored as `name`, or None if they are damaged."""
    right = hashlib.sha256(data).hexdigest() == name
    return data.decode(*_ENCODING) if right else None


@dataclass(frozen=True)
class RequestParts:
    """`shown` is the request with long texts cut to their beginnings. `row` is the part of it that
    fits into a row of the database. `long_texts` are the texts that are stored elsewhere, by their
    places."""

    shown: dict[str, Any]
    row: dict[str, Any]
    long_texts: dict[str, LongText]


async def split(request: Mapping[str, Any]) -> RequestParts:
    """The parts of a request. Raises `Refusal` for a request that is nested more than 64 levels
    deep."""
    plain = len(request) <= 50 and all(map(_is_plain, request.values()))
    return split_at_once(request) if plain else await asyncio.to_thread(split_at_once, request)


def split_at_once(request: Mapping[str, Any]) -> RequestParts:
    """Do the same in this thread, which takes a while for megabytes."""
    long: dict[str, str] = {}
    shown = _shortened(request, (), long, None)
    places = [place for place in long if len(place) <= _PLACE_MAX_CHARACTERS]
    largest = sorted(places, key=lambda place: len(long[place]), reverse=True)[:_MOST]
    long_texts = {place: LongText.of(long[place]) for place in largest}
    row, rest = shown, shown
    if len(long_texts) < len(long):
        rest = _shortened(request, (), {}, long_texts.keys())
    text = _json(rest)
    if len(text) > _ROW_MAX_CHARACTERS:
        row = excerpt(shown)
        long_texts[_ALL] = LongText.of(text)
    return RequestParts(shown, row, long_texts)


def joined(row: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    """The whole request, from its row and its long texts by their places."""
    request: Any = json.loads(texts[_ALL]) if _ALL in texts else _shortened(row, (), {}, ())
    for place, text in texts.items():
        *way, last = json.loads(place) or [None]
        if last is None:
            continue
        where = request
        for step in way:
            where = where[step]
        where[last] = text
    return dict(request)


def _shortened(value: Any, way: tuple[str | int, ...], long: dict[str, str], only: Any) -> Any:
    """A copy of `value` with long texts cut to their beginnings. `long` gets the long texts by
    place. With `only`, only the texts at these places are cut."""
    if isinstance(value, str) and len(value) > _LONG_CHARACTERS:
        place = json.dumps(way)
        if only is not None and place not in only:
            return value
        long[place] = value
        return beginning(value)
    if not isinstance(value, Mapping | list):
        return value
    if len(way) >= _DEEPEST:
        raise Refusal("invalid_request", f"The request is nested more than {_DEEPEST} deep")
    if isinstance(value, list):
        return [_shortened(one, (*way, at), long, only) for at, one in enumerate(value)]
    return {key: _shortened(one, (*way, key), long, only) for key, one in value.items()}


def _json(value: object) -> str:
    """Encode in small steps, so that other threads can run."""
    return "".join(json.JSONEncoder().iterencode(value))


def _is_plain(value: object) -> bool:
    short = isinstance(value, str) and len(value) <= _LONG_CHARACTERS
    return short or value is None or isinstance(value, int | float)
