"""Settings that nobody needs any more: still read, in no table, with a warning.

Each is None unless it is set, and its description says what to do now.
"""

from __future__ import annotations

from pydantic import BaseModel, Field


class RetiredSettings(BaseModel):
    """What they do is said where they are used."""

    in_flight_key_bytes: int | None = Field(
        default=None,
        ge=1024,
        description="without it, one key may have a quarter of WAN_IN_FLIGHT_MAX_BYTES in "
        "flight; unset it, and set that one instead",
    )
