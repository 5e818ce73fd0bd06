"""Computes the price of a clip from the hosted price table (seed page "Cost calculation"), so that
clients can keep their accounting."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

HOSTED_PRICES: Mapping[str, Decimal] = {"1280*720": Decimal("0.10"), "1920*1080": Decimal("0.15")}
"""USD per second of video, by `size`."""


Prices = Mapping[Any, Decimal | Mapping[Any, Decimal]]
"""USD per second by size, or by task and then by size."""


def cost(
    size: str, seconds: int, prices: Prices = HOSTED_PRICES, task: str = "image-to-video"
) -> Decimal:
    """USD for `seconds` of video at `size`: by the `prices` of the task, else by the `prices` of
    the size, else by the hosted price."""
    return price_a_second(size, prices, task) * seconds


def price_a_second(size: str, prices: Prices, task: str = "image-to-video") -> Decimal:
    """USD per second of video."""
    of_task, of_size = prices.get(task, {}), prices.get(size, HOSTED_PRICES[size])
    assert isinstance(of_task, Mapping) and isinstance(of_size, Decimal), "settings have checked it"
    return of_task.get(size, of_size)
