"""The test doubles: settings may name them, and no list of models shows them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from wan_engine import toy, weights
from wan_engine.catalog import CATALOG, CLASSIFIERS, WRITERS
from wan_engine.errors import ModelMissing
from wan_engine.settings import Settings
from wan_engine.toy.checkpoints import NAMES

DOUBLES = {**toy.MODELS, **toy.CLASSIFIERS, **toy.WRITERS}


def test_no_list_shows_a_double() -> None:
    listed = {**CATALOG, **CLASSIFIERS, **WRITERS}
    assert [name for name in DOUBLES if name in listed] == []
    assert [name for name, row in listed.items() if row.is_toy] == ["wan-tiny"]


def test_each_double_has_a_unique_name_and_can_be_built() -> None:
    assert [name for name, row in DOUBLES.items() if name != row.name or not row.is_toy] == []
    assert set(DOUBLES) < set(NAMES)


def test_a_double_is_found_by_its_name(make_settings: Callable[..., Settings]) -> None:
    located = weights.resolve("wan-tiny-ti2v", make_settings())
    assert located.spec == toy.MODELS["wan-tiny-ti2v"]
    with pytest.raises(ModelMissing, match="not a catalogue name") as refused:
        weights.resolve("wan-tiny-t2v", make_settings())
    assert "wan-tiny," not in str(refused.value) and "wan-tiny-ti2v" not in str(refused.value)
