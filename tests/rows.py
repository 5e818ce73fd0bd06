"""Every row that a setting may name: those of the catalogue and the test doubles."""

from __future__ import annotations

from wan_engine import toy
from wan_engine.catalog import CATALOG, ModelSpec

ROWS: dict[str, ModelSpec] = {**CATALOG, **toy.MODELS}
