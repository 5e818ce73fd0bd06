"""The stored excerpt of a caller's request."""

from __future__ import annotations

import json
from typing import Any

from wan_engine.gateway.excerpt import excerpt


def test_small_values_are_stored_unchanged() -> None:
    body = {
        "prompt": "Leaves sway",
        "input_image": "https://a.example/a.png",
        "duration": "10",
        "seed": 1,
        "tags": ["a", {"b": None}],
        "x": 1.5,
    }
    assert excerpt(body) == body


def test_a_data_uri_is_stored_by_its_beginning() -> None:
    uri = "data:image/png;base64," + "A" * 1_000_000
    kept = excerpt({"input_image": uri, "input_images": [uri]})
    assert kept == {"input_image": uri[:64] + "...", "input_images": [uri[:64] + "..."]}


def test_the_excerpt_is_small_and_can_be_written() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    body = {"prompt": "x" * 10**6, "deep": deep, "infinite": float("inf"), "y" * 10**6: 1}
    body |= {f"key {count}": "z" * 1500 for count in range(100)}
    kept = excerpt(body)
    assert len(json.dumps(kept, allow_nan=False)) < 10_000
    assert kept["prompt"] == "x" * 2000 + "..."
    assert {"deep", "infinite"}.isdisjoint(kept)


def test_the_excerpt_is_small_in_memory_as_well() -> None:
    """Six kB of empty lists take 140 kB in memory, and ten thousand jobs are kept."""
    empty = {"x": [[]] * 2000, "y": [{}] * 2000, "z": [{"a": [0] * 50}] * 20}
    many = {f"key {count}": [[], {}] for count in range(300)}
    assert excerpt(empty) == {}
    assert len(excerpt(many)) == 256 // 3
