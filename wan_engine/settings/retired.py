"""Deprecated settings. They still work and log a warning; no table lists them.

Each is None unless it is set. Its description says what to set instead.
"""

from __future__ import annotations

from pydantic import BaseModel, Field


class RetiredSettings(BaseModel):
    """The code that reads a setting says what it does."""

    in_flight_key_bytes: int | None = Field(
        default=None,
        ge=1024,
        description="unset it and set WAN_IN_FLIGHT_MAX_BYTES instead, of which one key may use a "
        "quarter",
    )
