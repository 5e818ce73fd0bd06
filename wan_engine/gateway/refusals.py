"""Defines the reasons for which the gateway refuses a call. Each door puts them into its API's
words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RefusalCode = Literal[
    "invalid_request",
    "unauthenticated",
    "forbidden",
    "not_found",
    "method_not_allowed",
    "timeout",
    "conflict",
    "gone",
    "too_large",
    "unsupported_media_type",
    "rate_limited",
    "queue_full",
    "unavailable",
    "internal_error",
]

HTTP_STATUS: dict[RefusalCode, int] = {
    "invalid_request": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "timeout": 408,
    "conflict": 409,
    "gone": 410,
    "too_large": 413,
    "unsupported_media_type": 415,
    "rate_limited": 429,
    "queue_full": 429,
    "unavailable": 503,
    "internal_error": 500,
}


@dataclass
class Refusal(Exception):
    """Raise it anywhere below a route: the door whose path was called makes the answer
    (`Door.refuse`).

    `message` is a sentence for the caller. `retry_after_seconds` becomes the header `Retry-After`,
    `allowed` methods the header `Allow`.
    """

    code: RefusalCode
    message: str
    retry_after_seconds: int | None = None
    allowed: tuple[str, ...] = ()

    @property
    def status(self) -> int:
        return HTTP_STATUS[self.code]
