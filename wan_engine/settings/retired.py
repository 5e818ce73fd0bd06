"""Deprecated settings. They still work and log a warning if they are set.

A description says what is so without the setting, or what to set instead.
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
    head_seconds: float = Field(
        default=10,
        gt=0,
        description="unset it; the head of a request may take 10 seconds, and an upload may be "
        "slower than 16 KiB per second for as long",
    )
    body_rate: float = Field(
        default=16 * 1024,
        gt=0,
        description="unset it; an upload must bring 16 KiB per second",
    )
    runpod_claims: bool = Field(
        default=True,
        description="unset it; the gateway finds out whether an endpoint takes the field wan_claim",
    )
    progress_seconds: float = Field(
        default=2,
        ge=0,
        description="unset it; a worker posts its progress every 2 seconds at most",
    )
    reference_min_fps: float = Field(
        default=16,
        gt=0,
        le=60,
        description="unset it; videos of a request must have 16 frames per second, as the hosted "
        "API says",
    )
