"""The hosted price table, as the documented page prints it."""

from __future__ import annotations

from decimal import Decimal
from typing import get_args

import pytest

from wan_engine.schema import Size
from wan_engine.schema.pricing import HOSTED_PRICES, cost


@pytest.mark.parametrize(
    ("size", "seconds", "usd"),
    [
        ("1280*720", 5, "0.50"),
        ("1280*720", 10, "1.00"),
        ("1280*720", 15, "1.50"),
        ("1920*1080", 5, "0.75"),
        ("1920*1080", 10, "1.50"),
        ("1920*1080", 15, "2.25"),
    ],
)
def test_a_clip_costs_what_the_page_says(size: str, seconds: int, usd: str) -> None:
    assert cost(size, seconds) == Decimal(usd)


def test_every_size_has_a_price() -> None:
    assert set(HOSTED_PRICES) == set(get_args(Size))


def test_another_table_can_be_given() -> None:
    assert cost("1280*720", 15, {"1280*720": Decimal("0.07")}) == Decimal("1.05")


def test_a_size_that_the_given_table_lacks_has_the_hosted_price() -> None:
    assert cost("1920*1080", 5, {"1280*720": Decimal("0.07")}) == Decimal("0.75")


def test_a_free_clip_costs_nothing() -> None:
    assert cost("1280*720", 15, {"1280*720": Decimal(0)}) == 0
