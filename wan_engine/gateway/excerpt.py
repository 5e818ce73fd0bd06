"""What is kept of a caller's own words where all of them would be too much."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_KEPT_BYTES = 8 * 1024
_KEPT_CHARACTERS = 2000
_DATA_URI_CHARACTERS = 64


def brief(fields: Mapping[str, Any]) -> dict[str, Any]:
    """All but what is huge, of which the begin is kept or nothing: no picture in a data URI, and
    nothing that no JSON can say."""
    kept, left = dict[str, Any](), _KEPT_BYTES
    for key, value in fields.items():
        shown = [begin(one) for one in value] if isinstance(value, list) else begin(value)
        try:
            size = len(json.dumps([key, shown], allow_nan=False))
        except (ValueError, RecursionError):  # 1e999 is infinite
            continue
        if size <= left:
            kept[key] = shown
            left -= size
    return kept


def begin(value: object) -> object:
    """A text's begin where it is long, of a data URI what says its kind; anything else as it is."""
    if not isinstance(value, str):
        return value
    most = _DATA_URI_CHARACTERS if value[:5].lower() == "data:" else _KEPT_CHARACTERS
    return value if len(value) <= most else f"{value[:most]}..."
