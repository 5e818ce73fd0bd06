"""A clip of several shots from a picture: the image model makes the first shot, and the reference
model makes the later ones with the picture as reference."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.clips import (
    FEWEST,
    SMALLEST,
    Card,
    LongRun,
    MakeSettings,
    RequestFor,
    clip_frames,
    frame_hashes,
    local,
    probe,
)
from wan_engine import Control, Engine, toy
from wan_engine.catalog import CATALOG
from wan_engine.errors import Cancelled, OutOfMemory
from wan_engine.media.images import fit
from wan_engine.pool import Pool
from wan_engine.render import model_frames
from wan_engine.runtime import recipes
from wan_engine.runtime.recipes import Recipe
from wan_engine.schema import Carry, FirstPicture, Order, References, SegmentInput

FIRST, LATER = "image-to-video", "reference-to-video"
SMALL = {**SMALLEST, "reference_model": "wan-tiny-vace", "safety": "off"}


@pytest.fixture
def two(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """Engines with both models. Without `room_for` both fit on the device."""
    for rows, name in ((CATALOG, "wan-tiny"), (toy.MODELS, "wan-tiny-vace")):
        monkeypatch.setitem(rows, name, replace(rows[name], **FEWEST, steps=2))  # type: ignore[arg-type]

    def make(room_for: int = 2, **settings: Any) -> Engine:
        values = {**SMALL, **settings}
        needs = [one.needs_gb for one in Pool(make_settings(**values), real=False).models.values()]
        return Engine(make_settings(**values, pool_gb=sum(needs) if room_for == 2 else max(needs)))

    return make


@pytest.fixture
def order(request_for: RequestFor) -> Order:
    """Two shots, of 3 and 2 seconds."""
    return request_for(shot_type="multi", enable_prompt_expansion=True).order()


def frames(engine: Engine, order: Order, control: Control | None = None) -> list[str]:
    return frame_hashes(local(engine.generate(order, control).video_url))


def on_device(engine: Engine) -> set[str]:
    return {task for task, model in engine.pool.models.items() if model.on_device}


def test_the_later_shots_have_the_whole_picture_as_their_reference(
    two: Callable[..., Engine], order: Order
) -> None:
    engine: Any = two()
    doubles = {task: LongRun(model.spec) for task, model in engine.pool.models.items()}
    for task, double in doubles.items():
        engine.pool.models[task].family = double
    control = Control()
    result = engine.generate(order, control)
    assert result.model == "wan-tiny and wan-tiny-vace"
    assert result.plan.tasks == (FIRST, LATER) and result.cost == engine._price(order)
    [first], [later] = doubles[FIRST].asked, doubles[LATER].asked
    assert first.find(FirstPicture) is not None and first.find(References) is None
    assert later.find(FirstPicture) is None
    [picture] = later.find(References).images
    assert picture.size == (640, 360)
    assert (first.width, first.height) == (later.width, later.height)
    assert first.carry is not later.carry and first.seed != later.seed
    assert [one.split()[0] for one in result.warnings] == ["wan-tiny", "wan-tiny-vace"]
    clip = local(result.video_url)
    assert "model wan-tiny, wan-tiny-vace for reference-to-video; seed 3" in probe(clip)
    numbers = clip_frames(clip, result.plan.width, result.plan.height)
    assert len(numbers) == 20 and result.plan.cut_seconds == (3.0,)


def test_each_shot_equals_to_the_bit_what_its_model_makes_alone_and_all_have_one_size(
    two: Callable[..., Engine], order: Order, tmp_path: Path
) -> None:
    engine = two()
    prepared = engine.prepare(order, choice := engine.choose(order), tmp_path, Control())
    media, expansion = prepared.media, prepared.expansion
    plan = engine.plan(order, choice, expansion.script, media)
    load = {task: engine.pool.load(model) for task, model in engine.pool.models.items()}
    chunks = model_frames(lambda task: load[task], plan, media, lambda _spec: "", Control())
    found = np.concatenate(list(chunks))
    assert media.image is not None
    size = plan.render_width, plan.render_height
    given = (FirstPicture(fit(media.image, *size)), References((media.image,)))
    alone = []
    for shot, condition in zip(plan.shots, given, strict=True):
        [segment] = shot.segments
        numbers = (*size, segment.frames, segment.seed)
        asked = SegmentInput(shot.prompt, "", (condition, Carry()), *numbers)
        frames = np.concatenate(list(load[shot.task].render(asked, lambda _step: None).frames))
        alone.append(frames[: segment.shown])
    assert np.array_equal(found, np.concatenate(alone))
    assert found.shape == (20, *size[::-1], 3)


@pytest.mark.system
def test_with_room_for_one_model_the_first_is_released_before_the_second_is_read(
    two: Callable[..., Engine], order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy, narrow = two(), two(room_for=1)
    wanted = frames(roomy, order)
    assert on_device(roomy) == {FIRST, LATER}
    narrow.load()
    first = weakref.ref(narrow.pool.main.family)
    gone: list[bool] = []
    load = narrow.pool._bring

    def watched(model: Any, on_bytes: Any) -> None:
        narrow.pool._make_room(model)
        gone.append(first() is None)
        load(model, on_bytes)

    monkeypatch.setattr(narrow.pool, "_bring", watched)
    assert frames(narrow, order) == wanted
    assert gone == [True] and on_device(narrow) == {LATER}
    assert frames(narrow, order) == wanted  # back to the first model, and on


@pytest.mark.system
def test_a_job_cancelled_between_the_two_models_leaves_the_device_free(
    two: Callable[..., Engine], order: Order
) -> None:
    engine = two(room_for=1)
    engine.load()

    def cancelling(progress: Any) -> None:
        if progress.stage == "load":
            control.cancel()

    control = Control(on_progress=cancelling)
    with pytest.raises(Cancelled):
        engine.generate(order, control)
    assert not engine.pool._lock.locked() and engine.pool.models[LATER].family is None
    assert list(engine.settings.scratch_dir.glob("wan-*")) == []
    assert frames(engine, order) == frames(two(), order)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Card]:
    """Moves an engine's models to a simulated GPU, on which one model fails while `full` says
    so."""

    def make(engine: Engine, full: Callable[[Recipe], bool], fails: str = LATER) -> Card:
        card = Card(full, fails)
        monkeypatch.setattr("wan_engine.pool.load_family", card.load)
        monkeypatch.setattr(recipes, "can_wait_in_host_memory", lambda spec, recipe: False)
        for model in engine.pool.models.values():
            model.recipe = Recipe("cuda", "bfloat16")
        return card

    return make


def test_out_of_memory_in_the_later_shots_releases_the_first_model(
    two: Callable[..., Engine], order: Order, cards: Callable[..., Card]
) -> None:
    engine = two()
    wanted = frames(two(), order)
    card = cards(engine, lambda _recipe: engine.pool.models[FIRST].on_device)
    assert frames(engine, order) == wanted
    assert set(card.tried) == {"kept"} and on_device(engine) == {LATER}
    assert engine.pool.models[LATER].alone and not engine.pool.models[FIRST].alone


@pytest.mark.system
def test_out_of_memory_of_the_later_model_alone_makes_only_that_one_leaner(
    two: Callable[..., Engine], order: Order, cards: Callable[..., Card]
) -> None:
    engine = two(room_for=1)
    wanted = frames(two(), order)
    card = cards(engine, lambda recipe: recipe.text_encoder == "kept")
    assert frames(engine, order) == wanted
    assert card.tried[-2:] == ["kept", "moved"]
    assert engine.pool.models[FIRST].recipe == Recipe("cuda", "bfloat16")
    assert engine.pool.models[LATER].recipe.text_encoder == "moved"


def test_a_later_model_that_never_fits_is_named_and_the_first_model_stays_as_it_is(
    two: Callable[..., Engine],
    order: Order,
    cards: Callable[..., Card],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = two(room_for=1)
    cards(engine, lambda _recipe: False)
    load = engine.pool._bring

    def full(model: Any, on_bytes: Any) -> None:
        if model is engine.pool.models[LATER]:
            engine.pool._make_room(model)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        load(model, on_bytes)

    monkeypatch.setattr(engine.pool, "_bring", full)
    with pytest.raises(OutOfMemory, match="too little GPU memory for wan-tiny-vace"):
        engine.generate(order)
    assert engine.pool.models[FIRST].recipe == Recipe("cuda", "bfloat16")
    assert not engine.pool._lock.locked()


def test_a_plan_says_which_model_makes_which_shot_and_why(
    two: Callable[..., Engine], order: Order, make_settings: MakeSettings
) -> None:
    found = two().dry_run(order)
    assert [shot["model"] for shot in found["shots"]] == ["wan-tiny", "wan-tiny-vace"]
    assert [shot["crop"] for shot in found["shots"]] == [[0, 0, 1, 1]] * 2
    assert found["later_shots"] == {
        "model": "wan-tiny-vace",
        "reason": "the image is their reference",
    }
    assert found["steps"] == 2 + 2
    alone = Engine(make_settings(**SMALLEST)).dry_run(order)
    assert {shot["model"] for shot in alone["shots"]} == {"wan-tiny"}
    assert "later_shots" not in alone and alone["shots"][1]["crop"] != [0, 0, 1, 1]
