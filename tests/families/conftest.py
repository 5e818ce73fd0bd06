"""Tiny models, loaded by the real code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder import tiny
from wan_engine.acceleration import Recipe
from wan_engine.catalog import CATALOG
from wan_engine.families import load_family
from wan_engine.weights import LoraWeights


@pytest.fixture(scope="session")
def load(tiny_cache: Path) -> Callable[..., Any]:
    """`load(name, loras, recipe=..., **changes of the catalogue's row)`."""

    def load(
        name: str,
        loras: tuple[LoraWeights, ...] = (),
        recipe: Recipe = Recipe("cpu", "float32"),  # noqa: B008
        **changes: Any,
    ) -> Any:
        folder = tiny.build(name, tiny_cache / name)
        return load_family(replace(CATALOG[name], **changes), folder, recipe, loras)

    return load
