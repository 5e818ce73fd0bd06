"""Cuts a request down to the part that is small enough to keep in memory and to show again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_KEPT_BYTES = 8 * 1024
_KEPT_CHARACTERS = 2000
_DATA_URI_CHARACTERS = 64
_VALUE_BYTES = 32  # an empty list takes two bytes of JSON, and sixty in memory


def excerpt(fields: Mapping[str, Any]) -> dict[str, Any]:
    """At most 8 KB of `fields` as JSON, in at most 256 values. Long texts are cut to their
    beginnings. What still does not fit, or is no valid JSON, is left out."""
    kept, left = dict[str, Any](), _KEPT_BYTES
    for key, value in fields.items():
        shown = [beginning(one) for one in value] if isinstance(value, list) else beginning(value)
        try:
            size = max(len(json.dumps([key, shown], allow_nan=False)), _VALUE_BYTES * _count(shown))
        except (ValueError, RecursionError):  # 1e999 is infinite
            continue
        if size <= left:
            kept[key] = shown
            left -= size
    return kept


def beginning(value: object) -> object:
    """The first 2000 characters of a long text, or 64 of a data URI. Other values stay
    unchanged."""
    if not isinstance(value, str):
        return value
    most = _DATA_URI_CHARACTERS if value[:5].lower() == "data:" else _KEPT_CHARACTERS
    return value if len(value) <= most else f"{value[:most]}..."


def is_cut(value: str) -> bool:
    """Whether a data URI is what `beginning` has left of a longer one."""
    return len(value) == _DATA_URI_CHARACTERS + 3 and value.endswith("...")


def _count(value: object) -> int:
    """The number of values, including nested ones."""
    count, left = 0, [value]
    while left:
        count += 1
        one = left.pop()
        if isinstance(one, list | dict):
            left += one.values() if isinstance(one, dict) else one
    return count
