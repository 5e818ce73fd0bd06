"""Names the model families for the rows of the catalogue, and loads them. Nothing heavy is imported
until one is asked for."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_engine.catalog import ModelSpec
from wan_engine.logs import quiet_libraries
from wan_engine.runtime.recipes import Recipe
from wan_engine.settings.environment import tell_libraries
from wan_engine.weights import LocatedLora

if TYPE_CHECKING:
    from wan_engine.families.base import Family

OnBytes = Callable[[int, int], None]
"""Called with the bytes that are loaded and those in all. What it raises ends the load."""

FAMILIES: Mapping[str, str] = {
    "i2v": "wan_engine.families.i2v:ImageToVideo",
    "vace": "wan_engine.families.vace:ReferenceToVideo",
}
"""`module:Class` of each. A row of another package's names its class like that itself."""


def import_family(spec: ModelSpec) -> Any:
    """The class of a row's family, with the libraries under it: seconds, on a cold disk many."""
    tell_libraries()
    quiet_libraries(bars=not spec.built)
    module, _, name = FAMILIES.get(spec.family, spec.family).partition(":")
    with _without_collector():
        return getattr(importlib.import_module(module), name)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Garbage is not looked for: imports of this size make next to none, and a sixth of their time
    would go into the search."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def load_family(
    spec: ModelSpec,
    folder: Path,
    recipe: Recipe,
    loras: tuple[LocatedLora, ...] = (),
    on_bytes: OnBytes = lambda done, total: None,
) -> Family:
    """Load the checkpoint in `folder` as `recipe` says. Takes minutes for the real models.

    `on_bytes` is called with the bytes that are loaded and those in all, from this thread; what it
    raises ends the load, and nothing is left of it.
    """
    family: Family = import_family(spec).load(spec, folder, recipe, loras, on_bytes)
    return family
