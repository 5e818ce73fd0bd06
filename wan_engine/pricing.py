"""What a clip costs by the hosted price table (seed page "Cost calculation"), so that clients'
accounting goes on."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

HOSTED_PRICES: Mapping[str, Decimal] = {"1280*720": Decimal("0.10"), "1920*1080": Decimal("0.15")}
"""USD a second of video, by `size`."""


def cost(size: str, seconds: int, prices: Mapping[Any, Decimal] = HOSTED_PRICES) -> Decimal:
    """USD for `seconds` of video at `size`, by `prices` where they name it, else by the hosted."""
    return prices.get(size, HOSTED_PRICES[size]) * seconds
