"""The table of GPUs: one row is measured, and the others are computed from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from builder.gpu_table import CARDS, HOST, MEASURED, MEASURED_ON, MODEL, Card, seconds, table
from wan_engine.catalog import CATALOG
from wan_engine.runtime.recipes import fits

ROOT = Path(__file__).parents[2]
ESTIMATED = pytest.mark.parametrize("card", CARDS[1:], ids=lambda card: card.gpu.name)


def test_one_row_is_measured_and_is_the_sum_of_its_stages() -> None:
    assert seconds(CARDS[0]) == pytest.approx(sum(MEASURED.values())) == pytest.approx(65.2)
    marked = [line for line in table().splitlines() if ", measured" in line]
    assert (
        len(marked) == 1
        and "| H200 |" in marked[0]
        and "| 65.2, measured on 2026-11-26 with `WAN_ATTENTION=cudnn` | 55 |" in marked[0]
    )
    assert table().count(", estimated") == len(CARDS) - 1


def test_the_measured_seconds_are_those_of_the_results() -> None:
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text("utf-8")
    [section] = [part for part in results.split("\n## ") if "one H200" in part.splitlines()[0]]
    assert f"{MEASURED_ON}, one NVIDIA H200" in section
    stages = " | ".join(f"{took:g}" for took in MEASURED.values())
    assert f"30 fps | {sum(MEASURED.values()):.1f} | {stages} |" in section
    page = (ROOT / "docs" / "cards.md").read_text("utf-8")
    assert f"on {MEASURED_ON}, with torch 2.11.0+cu130" in " ".join(page.split())


@ESTIMATED
def test_no_card_is_faster_than_the_measured_one_and_host_seconds_stay_the_same(card: Card) -> None:
    on_the_host = MEASURED["interpolate"] + MEASURED["encode"]
    assert seconds(CARDS[0]) < seconds(card)
    fast = replace(card, bfloat16=card.bfloat16 * 1e6, float8=1e9, memory=card.memory * 1e6)
    assert seconds(fast) == pytest.approx(on_the_host, abs=0.1)


@ESTIMATED
def test_half_the_rates_double_the_seconds_of_the_card(card: Card) -> None:
    on_the_host = MEASURED["interpolate"] + MEASURED["encode"]
    half = replace(
        card,
        bfloat16=card.bfloat16 / 2,
        float8=card.float8 and card.float8 / 2,
        memory=card.memory / 2,
    )
    assert seconds(half) - on_the_host == pytest.approx(2 * (seconds(card) - on_the_host))


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.gpu.name)
def test_every_named_card_holds_the_model(card: Card) -> None:
    assert fits(CATALOG[MODEL], card.gpu, HOST)
