"""A device that is too small: leaner recipes are tried in order, on the real tiny model."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.clips import (
    OrderFor,
    frame_hashes,
    local,
)
from wan_engine import Engine
from wan_engine.catalog import CATALOG
from wan_engine.errors import (
    OutOfMemory,
)
from wan_engine.families import load_family
from wan_engine.runtime.recipes import Gpu, Recipe

KEPT, MOVED = ("none", "kept"), ("none", "moved")


class SmallCard:
    """Loads the real tiny model on the CPU as if on a GPU that fits `enough` and leaner recipes
    only.

    With any other recipe, `part` of the pipeline raises the out-of-memory error of CUDA.
    """

    error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    def __init__(self, part: str, enough: tuple[str, str] | None) -> None:
        self.part = part
        self.enough = enough
        self.tried: list[tuple[str, str]] = []

    def load(self, spec: Any, folder: Path, recipe: Recipe, loras: Any, _on_bytes: Any) -> Any:
        self.tried.append((recipe.offload, recipe.text_encoder))
        family: Any = load_family(spec, folder, Recipe("cpu", "float32"), loras)

        def full(*_: object) -> None:
            raise type(self.error)(*self.error.args)  # an exception once raised keeps its frames

        if self.tried[-1] != self.enough:
            attrgetter(self.part)(family.pipeline).register_forward_pre_hook(full)
        return family


@pytest.fixture
def engine(unloaded: Engine) -> Engine:
    """A family that reads its weights when it first needs them."""
    return unloaded


@pytest.fixture
def small_card(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SmallCard]:
    def make(part: str, enough: tuple[str, str] | None) -> SmallCard:
        card = SmallCard(part, enough)
        monkeypatch.setattr("wan_engine.pool.load_family", card.load)
        engine.pool.main.recipe = Recipe("cuda", "bfloat16")
        return card

    return make


def test_the_time_of_a_clip_that_was_rendered_twice_is_not_used_for_estimates(
    engine: Engine,
    shortest: OrderFor,
    small_card: Callable[..., SmallCard],
    tmp_path: Path,
) -> None:
    card = small_card("transformer_2", MOVED)
    engine.settings = engine.settings.model_copy(update={"cache_dir": tmp_path / "cache"})
    engine.generate(shortest())
    assert card.tried == [KEPT, MOVED]
    assert engine.dry_run(shortest())["expected_seconds"] is None
    engine.generate(shortest())
    assert card.tried == [KEPT, MOVED]  # the leaner recipe is kept
    assert engine.dry_run(shortest())["expected_seconds"] > 0


@pytest.mark.parametrize("part", ["text_encoder", "transformer", "transformer_2", "vae.decoder"])
def test_out_of_memory_is_tried_again_on_a_leaner_recipe(
    engine: Engine,
    shortest: OrderFor,
    small_card: Callable[..., SmallCard],
    part: str,
    tmp_path: Path,
) -> None:
    card = small_card(part, MOVED)
    result = engine.generate(shortest())
    assert card.tried == [KEPT, MOVED]
    assert len(frame_hashes(local(result.video_url))) == 8
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (
            "transformer",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        ),
        ("vae.decoder", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_a_library_that_finds_no_memory_is_out_of_memory_too(
    engine: Engine,
    shortest: OrderFor,
    small_card: Callable[..., SmallCard],
    part: str,
    text: str,
) -> None:
    card = small_card(part, MOVED)
    card.error = RuntimeError(text)
    engine.generate(shortest())
    assert card.tried == [KEPT, MOVED]


@pytest.mark.parametrize("what", ["check_prompt", "check_image", "watch"])
def test_out_of_memory_beside_the_model_is_tried_again_too(
    engine: Engine,
    shortest: OrderFor,
    small_card: Callable[..., SmallCard],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """A classifier on the model's device that finds no memory left."""
    card, check = small_card("transformer", KEPT), getattr(engine.safety, what)

    def crowded(*arguments: Any) -> Any:
        if engine.recipe.text_encoder == "kept":
            raise SmallCard.error
        return check(*arguments)

    monkeypatch.setattr(engine.safety, what, crowded)
    card.enough = MOVED if what != "watch" else KEPT
    engine.load()
    card.enough = MOVED
    engine.generate(shortest(enable_safety_checker=True))
    assert card.tried == [KEPT, MOVED]


def test_the_leaner_recipe_gives_the_same_frames(
    engine: Engine, shortest: OrderFor, small_card: Callable[..., SmallCard]
) -> None:
    plain = frame_hashes(local(engine.generate(shortest()).video_url))
    engine.pool.main.family = None
    small_card("vae.decoder", MOVED)
    assert frame_hashes(local(engine.generate(shortest()).video_url)) == plain


def test_memory_that_never_suffices_is_a_sentence_with_what_would_fit(
    engine: Engine,
    shortest: OrderFor,
    small_card: Callable[..., SmallCard],
    tmp_path: Path,
) -> None:
    card = small_card("transformer", None)
    engine.pool.gpu = Gpu("RTX 4090", 25.3, (8, 9))
    large = CATALOG["wan2.2-i2v-a14b"].networks
    engine.pool.main.spec = replace(engine.spec, name="wan2.2-i2v-a14b", networks=large)
    with pytest.raises(OutOfMemory) as caught:
        engine.generate(shortest())
    assert card.tried == [KEPT, MOVED]
    assert str(caught.value) == (
        "The worker has too little GPU memory for wan2.2-i2v-a14b: "
        "a WAN_RENDER_AREA below 3072 needs less"
    )
    assert list((tmp_path / "scratch").iterdir()) == []
    assert list(tmp_path.glob("outputs/*.mp4")) == []


def test_required_compiling_is_not_given_up_for_memory(
    engine: Engine, shortest: OrderFor, small_card: Callable[..., SmallCard]
) -> None:
    card = small_card("transformer", ("stream", "moved"))
    engine.pool._settings = engine.settings.model_copy(update={"compile": "required"})
    engine.pool.main.recipe = replace(engine.recipe, text_encoder="moved", compiled=True)
    with pytest.raises(OutOfMemory, match="too little GPU memory"):
        engine.generate(shortest())
    assert card.tried == [MOVED]


def test_a_failed_run_is_freed_before_the_next_recipe_is_loaded(
    engine: Engine, shortest: OrderFor, small_card: Callable[..., SmallCard]
) -> None:
    card, alive = small_card("vae.decoder", MOVED), []
    families: list[weakref.ref[Any]] = []

    def load(*arguments: Any) -> Any:
        alive.append([reference() for reference in families if reference() is not None])
        family = card.load(*arguments)
        families.append(weakref.ref(family))
        return family

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wan_engine.pool.load_family", load)
        engine.generate(shortest())
    assert alive == [[], []]
