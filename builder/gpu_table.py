"""Builds the table of cards: what each does with the four-step model, measured or estimated.

One card was measured, with exact attention. The others are estimated from it by their data sheets,
so the ratio of two rows is more certain than a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wan_engine.catalog import CATALOG
from wan_engine.runtime.recipes import Gpu, Host, Recipe, choose, host_gb, needs_gb
from wan_engine.settings import Settings

MODEL = "wan2.2-i2v-a14b-4step"

HOST = Host(memory_gb=64.0)
"""Assumed host memory in GB: no provider guarantees the memory of the machine around a card."""


@dataclass(frozen=True)
class Card:
    """A card. `pool` is Runpod's name of a group of cards. From NVIDIA's data sheets: dense tensor
    rates in 10^12 operations per second with float32 accumulation, memory rates in 10^12 bytes per
    second."""

    gpu: Gpu
    pool: str | None
    bfloat16: float
    float8: float | None
    memory: float


CARDS = (
    Card(Gpu("H200", 150.1, (9, 0)), "HOPPER_141", 989, 1979, 4.8),
    Card(Gpu("H100", 85.0, (9, 0)), "ADA_80_PRO", 989, 1979, 3.35),
    Card(Gpu("A100", 85.1, (8, 0)), "AMPERE_80", 312, None, 2.04),
    Card(Gpu("L40S", 47.7, (8, 9)), "ADA_48_PRO", 362, 733, 0.864),
    Card(Gpu("A40", 47.7, (8, 6)), "AMPERE_48", 149.7, None, 0.696),
    Card(Gpu("RTX 5090", 34.2, (12, 0)), None, 209.5, 419, 1.79),
    Card(Gpu("RTX 4090", 25.3, (8, 9)), "ADA_24", 165.2, 330.3, 1.008),
)

MEASURED_ON = "2026-11-26"
MEASURED: Mapping[str, float] = {
    "denoise": 45.9,
    "decode": 2.9,
    "interpolate": 15.1,
    "encode": 1.3,
}
"""Seconds per stage of 720p, 5 s, four steps to 30 fps on an H200, from benchmarks/RESULTS.md
(torch 2.11.0+cu130, full-size random weights, float8 matrices, compiled blocks). `denoise` includes
text and image encoding."""

# One forward at 1280x720x81, from the architecture: 75,600 tokens, 40 layers of width 5120.
_ATTENTION = 4714.0  # 10^12 operations, in bfloat16
_MATRICES = 1809.0
_TRAFFIC, _TRAFFIC_COMPILED = 3.85, 0.76  # 10^12 bytes of norms, modulation and rotary embedding


def seconds(card: Card) -> float:
    """Seconds for a clip of 720p and 5 s on `card`, with the recipe that it gets: the measured
    time, scaled."""
    measured = CARDS[0]
    ratio = _forward(card, _recipe(card)) / _forward(measured, _recipe(measured))
    decode = MEASURED["decode"] * measured.bfloat16 / card.bfloat16
    on_the_host = MEASURED["interpolate"] + MEASURED["encode"]
    return MEASURED["denoise"] * ratio + decode + on_the_host


def _forward(card: Card, recipe: Recipe) -> float:
    """Seconds of one forward pass at the rates of the card's data sheet."""
    fast = card.float8 if recipe.float8 and recipe.compiled else None
    traffic = _TRAFFIC_COMPILED if recipe.compiled else _TRAFFIC
    attention = _ATTENTION / card.bfloat16
    return attention + _MATRICES / (fast or card.bfloat16) + traffic / card.memory


def _recipe(card: Card) -> Recipe:
    return choose(CATALOG[MODEL], card.gpu, Settings.model_construct(), HOST)[0]


def table() -> str:
    """The table in Markdown."""
    lines = [
        "| card | Runpod's pool | recipe (as `doctor` shows it) | GPU GB | host GB | "
        "seconds per clip | clips per hour |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for card in CARDS:
        recipe, spec, took = _recipe(card), CATALOG[MODEL], seconds(card)
        measured = card is CARDS[0]
        shown = (
            f"{took:.1f}, measured on {MEASURED_ON}"
            if measured
            else f"about {_rounded(took)}, estimated"
        )
        if recipe.attention == "float8":
            shown += " with `WAN_ATTENTION=cudnn`"
        lines.append(
            f"| {card.gpu.name} | {f'`{card.pool}`' if card.pool else ''} | {recipe} | "
            f"{needs_gb(spec, recipe):.0f} | {host_gb(spec, recipe):.0f} | {shown} | "
            f"{3600 / took if measured else 3600 / _rounded(took):.0f} |"
        )
    return "\n".join(lines)


def _rounded(value: float) -> int:
    """The number rounded to the precision of an estimate."""
    return round(value / 10) * 10
