"""Finds fields that change a clip under a name that the reader of a request does not have.

No hosted page has these names, so nobody sends them by chance. Other unknown fields are ignored, as
the hosted APIs do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_NAMES = (
    ("last_image", "last_image_url", "last_frame_url"),
    ("first_clip", "first_clip_url"),
    ("keep_first_clip",),
    ("loras", "lora"),
    ("references",),
)
"""Fields of a `Request`, each with the names that other APIs of this server have for it."""


def is_nothing(value: object) -> bool:
    """Whether a value means that the field is not given. Forms send empty texts and lists."""
    return value is None or value in ("", [])


def not_read(given: Mapping[str, Any], read: Collection[str]) -> tuple[str, str] | None:
    """The first such field of `given`, and the sentence about it. `read` are the names of the
    fields that are read."""
    for names in _NAMES:
        for name in names:
            if name in given and name not in read and not is_nothing(given[name]):
                ours = next((f'use "{one}"' for one in names if one in read), "leave it out")
                return name, f'field "{name}" is not supported here: {ours}'
    return None
