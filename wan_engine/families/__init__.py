"""Names the model families for the rows of the catalogue, and loads them. Heavy libraries are
imported only when a family is loaded."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_engine.catalog import ModelSpec
from wan_engine.runtime.logs import quiet_libraries
from wan_engine.runtime.recipes import Recipe
from wan_engine.schema import OnBytes
from wan_engine.settings.environment import tell_libraries
from wan_engine.weights import LocatedLora

if TYPE_CHECKING:
    from wan_engine.families.base import Family

FAMILIES: Mapping[str, str] = {
    "i2v": "wan_engine.families.i2v:ImageToVideo",
    "kandinsky": "wan_engine.families.kandinsky:SoundForVideo",
    "vace": "wan_engine.families.vace:ReferenceToVideo",
    "s2v": "wan_engine.families.s2v:SpeechToVideo",
}
"""The `module:Class` of each family. A row of another package names its class in the same way."""


def import_family(spec: ModelSpec) -> Any:
    """Import the class of a row's family and its libraries, which takes seconds, or many on a cold
    disk."""
    tell_libraries()
    quiet_libraries(bars=not spec.is_toy)
    module, _, name = FAMILIES.get(spec.family, spec.family).partition(":")
    with _without_collector():
        return getattr(importlib.import_module(module), name)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Disable the garbage collector: imports of this size leave almost no garbage, and the search
    for it takes a sixth of their time."""
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

    `on_bytes` is called from this thread with the bytes loaded so far and the total. An error that
    it raises stops the load and leaves nothing behind.
    """
    family: Family = import_family(spec).load(spec, folder, recipe, loras, on_bytes)
    return family
