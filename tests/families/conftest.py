"""Tiny models, loaded by the real code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diffusers import WanImageToVideoPipeline

from tests.families.lora_files import network
from tests.rows import ROWS
from wan_engine import toy
from wan_engine.families import load_family
from wan_engine.runtime.recipes import Recipe
from wan_engine.weights import LocatedLora


def stock(pipeline: Any) -> Any:
    """The pipeline of diffusers with our networks."""
    config = pipeline.config
    made = WanImageToVideoPipeline(
        **pipeline.components,
        boundary_ratio=config.boundary_ratio,
        expand_timesteps=config.expand_timesteps,
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="session")
def load(tiny_cache: Path) -> Callable[..., Any]:
    """`load(name, loras, recipe=..., **changes of the catalogue's row)`."""

    def load(
        name: str,
        loras: tuple[LocatedLora, ...] = (),
        recipe: Recipe = Recipe("cpu", "float32"),  # noqa: B008
        **changes: Any,
    ) -> Any:
        folder = toy.build(name, tiny_cache / name)
        return load_family(replace(ROWS[name], **changes), folder, recipe, loras)

    return load


@pytest.fixture(scope="session")
def plain() -> Any:
    """The network that `lora_files` are made for. Tests leave it unchanged."""
    return network()
