"""Two models on a device with room for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.engine.clips import (
    FEWEST,
    SMALLEST,
    Card,
    MakeSettings,
    RequestFor,
    frame_hashes,
    local,
)
from wan_engine import Control, Engine, toy
from wan_engine.errors import Cancelled, ConfigurationError, ModelMissing, NotServed
from wan_engine.pool import Model, Pool
from wan_engine.runtime import recipes
from wan_engine.runtime.recipes import Gpu, Recipe
from wan_engine.schema import FirstPicture, Order, SegmentInput

FIRST, SECOND = "image-to-video", "image-to-video-with-sound"
NAMES = {FIRST: "wan-tiny", SECOND: "wan-tiny-ti2v"}


@pytest.fixture
def two(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """Engines with a model for each of two tasks. Without `room_for` both fit on the device."""
    row = replace(toy.MODELS["wan-tiny-ti2v"], task=SECOND, steps=2)
    monkeypatch.setitem(toy.MODELS, row.name, row)  # type: ignore[misc]

    def make(room_for: int = 2, **settings: Any) -> Engine:
        values = {**SMALLEST, "video_sound_model": row.name, "safety": "off", **settings}
        pool = Pool(make_settings(**values), real=False)
        needs = [model.needs_gb for model in pool.models.values()]
        engine = Engine(
            make_settings(**values, pool_gb=sum(needs) if room_for == 2 else max(needs))
        )
        for model in engine.pool.models.values():
            model.spec = replace(model.spec, **FEWEST)
        return engine

    return make


def on_device(engine: Engine) -> set[str]:
    return {task for task, model in engine.pool.models.items() if model.on_device}


@pytest.fixture
def orders(request_for: RequestFor) -> dict[str, Order]:
    """A request for each task, for the shortest clip."""
    quiet = replace(request_for().order(), duration=2)
    return {FIRST: replace(quiet, sound=False), SECOND: replace(quiet, sound=True)}


def frames(engine: Engine, order: Order, control: Control | None = None) -> list[str]:
    return frame_hashes(local(engine.generate(order, control).video_url))


def test_models_used_in_turns_give_the_frames_that_each_gives_alone(
    two: Callable[..., Engine], orders: dict[str, Order], caplog: pytest.LogCaptureFixture
) -> None:
    roomy, narrow = two(), two(room_for=1)
    roomy.load()
    alone = {task: frames(roomy, order) for task, order in orders.items()}
    assert on_device(roomy) == {FIRST, SECOND} and alone[FIRST] != alone[SECOND]
    narrow.load()
    assert on_device(narrow) == {FIRST}  # the second model does not fit beside the first
    with caplog.at_level("INFO"):
        for task in (SECOND, FIRST, FIRST, SECOND):
            assert frames(narrow, orders[task]) == alone[task]
            assert on_device(narrow) == {task}
    dropped = [line for line in caplog.messages if "is unloaded, and loaded again" in line]
    assert [line.split()[1] for line in dropped] == ["wan-tiny", "wan-tiny-ti2v", "wan-tiny"]
    assert "wan-tiny-ti2v needs the room" in dropped[0]


def test_a_load_is_a_stage_with_bytes_and_ends_when_the_job_is_cancelled(
    two: Callable[..., Engine], orders: dict[str, Order]
) -> None:
    engine = two(room_for=1)
    engine.load()
    told: list[tuple[int, int]] = []

    def cancelling(progress: Any) -> None:
        if progress.stage == "load":
            told.append((progress.step, progress.steps))
            control.cancel()

    control = Control(on_progress=cancelling)
    with pytest.raises(Cancelled):
        engine.generate(orders[SECOND], control)
    assert told and told[0][0] <= told[0][1]
    assert engine.pool.models[SECOND].family is None and not engine.pool._lock.locked()
    assert frames(engine, orders[SECOND]) and on_device(engine) == {SECOND}
    assert frames(engine, orders[FIRST]) and on_device(engine) == {FIRST}


def test_out_of_memory_beside_another_model_releases_that_model_and_keeps_the_recipe(
    two: Callable[..., Engine], orders: dict[str, Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = two()
    others = engine.pool.models
    card = Card(lambda _recipe: others[FIRST].on_device, SECOND)
    monkeypatch.setattr("wan_engine.pool.load_family", card.load)
    monkeypatch.setattr(recipes, "can_wait_in_host_memory", lambda spec, recipe: False)
    for model in engine.pool.models.values():
        model.recipe = Recipe("cuda", "bfloat16")
    engine.load()
    assert on_device(engine) == {FIRST, SECOND}
    assert frames(engine, orders[SECOND])
    assert card.tried == ["kept"] and on_device(engine) == {SECOND}
    assert frames(engine, orders[FIRST]) and on_device(engine) == {FIRST}
    assert frames(engine, orders[SECOND]) and on_device(engine) == {SECOND}
    assert set(card.tried) == {"kept"}  # no leaner recipe was needed


def test_out_of_memory_of_one_model_alone_makes_only_that_one_leaner(
    two: Callable[..., Engine], orders: dict[str, Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = two(room_for=1)
    card = Card(lambda recipe: recipe.text_encoder == "kept", SECOND)
    monkeypatch.setattr("wan_engine.pool.load_family", card.load)
    monkeypatch.setattr(recipes, "can_wait_in_host_memory", lambda spec, recipe: False)
    for model in engine.pool.models.values():
        model.recipe = Recipe("cuda", "bfloat16")
    before = frames(engine, orders[FIRST])
    assert frames(engine, orders[SECOND]) and card.tried[-2:] == ["kept", "moved"]
    assert engine.pool.models[SECOND].recipe.text_encoder == "moved"
    assert engine.pool.models[FIRST].recipe == Recipe("cuda", "bfloat16")
    assert frames(engine, orders[FIRST]) == before


def test_a_model_waits_in_host_memory_if_it_fits_there_and_comes_back_the_same(
    two: Callable[..., Engine], orders: dict[str, Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "can_wait_in_host_memory", lambda spec, recipe: True)
    engine = two(room_for=1)
    before = frames(engine, orders[FIRST])
    family = engine.pool.models[FIRST].family
    frames(engine, orders[SECOND])
    assert engine.pool.models[FIRST].away and on_device(engine) == {SECOND}
    assert frames(engine, orders[FIRST]) == before
    assert engine.pool.models[FIRST].family is family and not engine.pool.models[FIRST].away


@pytest.mark.parametrize("name", list(NAMES.values()))
def test_a_family_that_was_moved_gives_the_same_latents(
    make_settings: MakeSettings, name: str
) -> None:
    family: Any = Engine(make_settings(model=name, **SMALLEST)).load()
    picture = FirstPicture(Image.linear_gradient("L").convert("RGB").resize((64, 64)))
    asked = SegmentInput("x", "", (picture,), 64, 64, 5, seed=1)
    before = [np.concatenate(list(family.render(asked, lambda _: None).frames))]
    family.move("cpu")
    before.append(np.concatenate(list(family.render(asked, lambda _: None).frames)))
    assert np.array_equal(*before)


# --- memory limits -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "free_gb", "waits"),
    [
        (Recipe("cuda", "bfloat16"), 100, True),
        (Recipe("cuda", "bfloat16"), 60, False),
        (Recipe("cuda", "bfloat16", "stream", "moved"), 500, False),  # the process needs it anyway
        (Recipe("cpu", "float32"), 500, False),  # there is no other memory
    ],
)
def test_a_model_may_wait_in_host_memory_only_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, free_gb: float, waits: bool
) -> None:
    from wan_engine.catalog import CATALOG
    from wan_engine.runtime import memory

    monkeypatch.setattr(memory, "available_bytes", lambda: int(free_gb * 1e9))
    assert recipes.can_wait_in_host_memory(CATALOG["wan2.2-i2v-a14b"], recipe) == waits


def test_a_model_keeps_less_memory_than_a_clip_needs() -> None:
    from wan_engine.catalog import CATALOG

    for spec in CATALOG.values():
        for offload in ("none", "model", "stream", "layer"):
            recipe = Recipe("cuda", "bfloat16", offload)
            assert 0 <= recipes.kept_gb(spec, recipe) < recipes.needs_gb(spec, recipe)


@pytest.mark.parametrize(("gpu", "set_gb", "limit_gb"), [(141.0, None, 141.0), (141.0, 80.0, 80.0)])
def test_the_limit_is_the_cards_or_a_lower_setting(
    make_settings: MakeSettings, gpu: float, set_gb: float | None, limit_gb: float
) -> None:
    card = Gpu("H200", gpu, (9, 0))
    assert recipes.pool_gb(card, make_settings(pool_gb=set_gb)) == limit_gb


# --- configuration -------------------------------------------------------------------------------


def test_each_task_has_a_setting_for_its_model(
    two: Callable[..., Engine], make_settings: MakeSettings
) -> None:
    with pytest.raises(
        ConfigurationError, match=r"a model for image-to-video. Name it in WAN_MODEL"
    ):
        two(reference_model="wan-tiny")
    with pytest.raises(ConfigurationError, match="no other task has a model that makes frames"):
        Engine(make_settings(model="none"))
    with pytest.raises(ModelMissing, match=r"^WAN_SPEECH_MODEL=nobody is not a catalogue name"):
        Engine(make_settings(speech_model="nobody"))


def test_a_task_without_a_model_is_refused_before_anything_is_fetched(
    make_settings: MakeSettings,
) -> None:
    engine = Engine(make_settings(**SMALLEST))
    with pytest.raises(
        NotServed, match=r'^field "references" cannot be used: no model is configured for '
    ):
        engine.generate(Order("x", references=("http://192.0.2.1/a.png",)))
    assert engine.pool.main.family is None


def test_a_models_settings_are_those_of_its_own_task(two: Callable[..., Engine]) -> None:
    engine = two(steps=3, guidance_scale=2.0)
    models: dict[Any, Model] = engine.pool.models  # type: ignore[assignment]
    assert models[FIRST].spec.steps == 3 and models[SECOND].spec.steps == 2
