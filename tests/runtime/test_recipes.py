"""The recipe of each model on each machine, over a table of cards and hosts."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest

from wan_engine import toy
from wan_engine.catalog import CATALOG, ModelSpec
from wan_engine.errors import ConfigurationError
from wan_engine.runtime import recipes
from wan_engine.runtime.recipes import (
    Gpu,
    Host,
    Recipe,
    beside,
    choose,
    detect,
    detect_host,
    fits,
    host_gb,
    leaner,
    least_gb,
    needs_gb,
    smaller,
    spare_gb,
)
from wan_engine.settings import Settings

SIZES_GB = (24.0, 32.0, 48.0, 80.0, 141.0)
KINDS = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
CARDS = [
    Gpu("T4", 15.8, (7, 5)),
    Gpu("RTX 4090", 25.3, (8, 9)),
    Gpu("RTX 5090", 34.2, (12, 0)),
    Gpu("A40", 47.7, (8, 6)),
    Gpu("L40S", 47.7, (8, 9)),
    Gpu("RTX PRO 6000", 102.0, (12, 0)),
    Gpu("A100", 85.1, (8, 0)),
    Gpu("H200", 150.1, (9, 0)),
] + [
    Gpu(f"card {gb:g} sm{major}{minor}", gb, (major, minor))
    for gb in SIZES_GB
    for major, minor in KINDS
]
ROWS = [*CATALOG.values(), *toy.MODELS.values()]
REAL = [row for row in ROWS if not row.is_toy]
LARGE = Host(memory_gb=251.0)
SMALL = Host(memory_gb=46.0)

# One test per row checks every card: a test for each of 5,000 pairs would cost more than its work.
every_row = pytest.mark.parametrize("spec", ROWS, ids="{.name}".format)

settings_of = cache(Settings)


def chosen(spec: ModelSpec, gpu: Gpu | None, host: Host = LARGE, **settings: Any) -> Recipe:
    return choose(spec, gpu, settings_of(**settings), host)[0]


# --- memory --------------------------------------------------------------------------------------


@every_row
def test_the_chosen_recipe_fits_card_and_host_if_any_does(spec: ModelSpec) -> None:
    for gpu, host in product(CARDS, (LARGE, SMALL)):
        recipe = chosen(spec, gpu, host)
        if fits(spec, gpu, host):
            assert needs_gb(spec, recipe) <= gpu.total_gb, (gpu.name, host)
            assert host_gb(spec, recipe) <= host.memory_gb, (gpu.name, host)
        elif gpu.capability >= (8, 0):
            assert recipe.offload == "layer", (gpu.name, host)  # the leanest recipe, as a last try


@every_row
def test_resident_weights_and_working_memory_are_in_the_sum(spec: ModelSpec) -> None:
    for gpu in CARDS:
        recipe = chosen(spec, gpu)
        networks = spec.networks
        if recipe.offload == "none":
            width = 2 if recipe.dtype == "float32" else 0.5 if recipe.float8 else 1
            weights = networks.expert_gb * networks.experts * width
            weights += networks.text_encoder_gb if recipe.text_encoder == "kept" else 0
            assert needs_gb(spec, recipe) > weights + spec.working_gb, gpu.name


@pytest.mark.parametrize("gpu", [card for card in CARDS if card.capability >= (8, 0)], ids=str)
def test_the_fast_tier_runs_on_every_card_from_24_gb(gpu: Gpu) -> None:
    assert fits(CATALOG["wan2.2-i2v-a14b-4step"], gpu, LARGE)


@every_row
def test_only_a_tiny_model_fits_a_card_without_bfloat16(spec: ModelSpec) -> None:
    assert fits(spec, Gpu("old", 141.0, (7, 5)), LARGE) == spec.is_toy


@every_row
def test_a_larger_card_never_fits_less(spec: ModelSpec) -> None:
    by_size = [Gpu("card", gb, (8, 9)) for gb in sorted((8.0, 12.0, 16.0, *SIZES_GB))]
    found = [fits(spec, gpu, LARGE) for gpu in by_size]
    assert found == sorted(found)


@every_row
def test_a_smaller_render_needs_less(spec: ModelSpec) -> None:
    half = replace(spec, max_area=spec.max_area // 2)
    for gpu in CARDS:
        recipe = chosen(spec, gpu)
        assert needs_gb(half, recipe) <= needs_gb(spec, recipe), gpu.name


def test_memory_used_by_others_is_not_counted() -> None:
    spec, gpu = CATALOG["wan2.2-i2v-a14b"], Gpu("H200", 150.1, (9, 0))
    busy = replace(gpu, free_gb=40.0)
    assert chosen(spec, gpu).offload == "none"
    assert chosen(spec, busy).offload == "stream"
    assert fits(spec, replace(gpu, free_gb=4.0), LARGE) is False


FOUR_STEP = CATALOG["wan2.2-i2v-a14b-4step"]


@pytest.mark.parametrize(
    ("recipe", "weights_gb"),
    [
        # the text encoder on its way to the device
        (Recipe("cuda", "bfloat16"), 11.36),
        (Recipe("cuda", "bfloat16", float8=True), 11.36),
        (Recipe("cuda", "bfloat16", text_encoder="moved"), 11.36),
        (Recipe("cuda", "bfloat16", "stream", float8=True), 2 * 0.52 * 28.64),
        (Recipe("cuda", "bfloat16", "stream", "moved", float8=True), 2 * 0.52 * 28.64 + 11.36),
        (Recipe("cuda", "bfloat16", "stream", "moved"), 2 * 28.64 + 11.36),
        (Recipe("cuda", "bfloat16", "model"), 2 * 28.64 + 11.36),
    ],
    ids=str,
)
def test_host_memory_is_what_stays_there_or_is_read_as_a_whole(
    recipe: Recipe, weights_gb: float
) -> None:
    process_gb = 6.0
    assert host_gb(FOUR_STEP, recipe) == pytest.approx(weights_gb + process_gb)


def test_torch_gets_its_memory_settings_before_it_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 0))
    told: list[str] = []

    def tell() -> None:
        told.append("told")
        monkeypatch.setitem(sys.modules, "torch", torch)  # modules imported from now on

    monkeypatch.setattr(recipes, "tell_libraries", tell)
    monkeypatch.setitem(sys.modules, "torch", None)  # makes an import an error
    assert recipes.detect("auto") is None and told


# --- choice of the recipe ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        (
            Gpu("H200", 150.1, (9, 0)),
            "float8 on cuda, attention float8, last decode in bfloat16, compiled",
        ),
        (
            Gpu("H100", 85.0, (9, 0)),
            "float8 on cuda, attention float8, last decode in bfloat16, compiled",
        ),
        (
            Gpu("A100", 85.1, (8, 0)),
            "bfloat16 on cuda, text encoder moved, attention native_flash, last decode in "
            "bfloat16, compiled",
        ),
        (
            Gpu("L40S", 47.7, (8, 9)),
            "bfloat16 on cuda, offload stream, attention native_flash, last decode in bfloat16",
        ),
        (
            Gpu("A40", 47.7, (8, 6)),
            "bfloat16 on cuda, offload stream, attention native_flash, last decode in bfloat16",
        ),
        (
            Gpu("RTX 5090", 34.2, (12, 0)),
            "bfloat16 on cuda, offload stream, attention native_flash, last decode in bfloat16",
        ),
        (
            Gpu("RTX 4090", 25.3, (8, 9)),
            "bfloat16 on cuda, offload stream, text encoder moved, attention native_flash, "
            "last decode in bfloat16",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Gpu) else "",
)
def test_the_fast_tier_gets_the_right_recipe_on_each_card(gpu: Gpu, expected: str) -> None:
    assert str(chosen(CATALOG["wan2.2-i2v-a14b-4step"], gpu)) == expected


def test_streamed_weights_are_float8_if_host_memory_is_small() -> None:
    spec, card = CATALOG["wan2.2-i2v-a14b-4step"], Gpu("RTX 5090", 34.2, (12, 0))
    assert chosen(spec, card, LARGE).float8 is False
    assert chosen(spec, card, SMALL).float8 is True


@every_row
def test_the_choice_says_why(spec: ModelSpec) -> None:
    for gpu in CARDS:
        recipe, reason = choose(spec, gpu, settings_of(), LARGE)
        assert reason.startswith(f"{gpu.name} ({gpu.sm}) with {gpu.total_gb:.0f} GB "), gpu.name
        assert f"{needs_gb(spec, recipe):.0f} GB" in reason, gpu.name
        assert reason.isprintable(), gpu.name


@every_row
def test_bfloat16_is_used_where_the_card_computes_in_it(spec: ModelSpec) -> None:
    for gpu in CARDS:
        expected = "float32" if gpu.capability == (7, 5) else "bfloat16"
        assert chosen(spec, gpu).dtype == expected, gpu.name


@every_row
def test_the_fastest_attention_is_used(spec: ModelSpec) -> None:
    # The toy's heads are too small for 8 bits, and only Wan's blocks support it.
    hopper = "float8" if spec.wan_blocks and not spec.is_toy else "_native_cudnn"
    known = {(7, 5): "native", (9, 0): hopper, (10, 0): "_native_cudnn"}
    for gpu in CARDS:
        assert chosen(spec, gpu).attention == known.get(gpu.capability, "_native_flash"), gpu.name
        exact = {(7, 5): "native"}.get(gpu.capability, "_native_cudnn")
        assert chosen(spec, gpu, attention="cudnn").attention in (exact, "_native_cudnn"), gpu.name


@every_row
def test_without_a_compiler_nothing_is_compiled(spec: ModelSpec) -> None:
    card = Gpu("H200", 150.1, (9, 0))
    bare = Host(251.0, no_compiler="there is no C compiler")
    for wanted in ("auto", "on"):
        recipe, reason = choose(spec, card, Settings(compile=wanted), bare)
        assert recipe.compiled is False
        said = reason.endswith("; blocks run uncompiled, slower: there is no C compiler")
        assert said == (spec.wan_blocks and (wanted == "on" or not spec.is_toy))
    assert "uncompiled" not in choose(spec, card, Settings(compile="off"), bare)[1]
    if not spec.wan_blocks:
        assert not chosen(spec, card, bare, compile="required").compiled
        return
    with pytest.raises(ConfigurationError, match="required, and there is no C compiler"):
        chosen(spec, card, bare, compile="required")


@every_row
@pytest.mark.parametrize("wanted", ["on", "required"])
@pytest.mark.parametrize("gpu", [Gpu("RTX 4090", 25.3, (8, 9)), Gpu("H200", 150.1, (9, 0))])
def test_compiling_on_request_needs_no_second_setting(
    spec: ModelSpec, gpu: Gpu, wanted: Any
) -> None:
    recipe, reason = choose(spec, gpu, Settings(compile=wanted), LARGE)
    if not spec.wan_blocks:
        assert not recipe.compiled
        return
    if wanted == "required":
        assert (recipe.compiled, recipe.offload) == (True, "none")
    assert recipe.compiled == (recipe.offload == "none")
    assert ("blocks run uncompiled, slower: offload" in reason) != recipe.compiled


def test_a_machine_that_is_too_small_is_tried_anyway_and_says_so() -> None:
    recipe, reason = choose(
        CATALOG["wan2.2-i2v-a14b"], Gpu("RTX 3050", 8.6, (8, 6)), Settings(), LARGE
    )
    assert recipe.offload == "layer"
    assert "is not enough for wan2.2-i2v-a14b: it needs" in reason


@pytest.mark.parametrize(
    ("asked", "device"), [("auto", "cuda"), ("cuda", "cuda"), ("cuda:1", "cuda:1")]
)
def test_the_device_is_the_requested_one(asked: str, device: str) -> None:
    assert chosen(CATALOG["wan-tiny"], CARDS[0], device=asked).device == device


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bfloat16", "float8"])
@pytest.mark.parametrize("offload", ["none", "stream", "model"])
def test_explicit_settings_win(precision: Any, offload: Any) -> None:
    card = Gpu("RTX 4090", 25.3, (8, 9))
    recipe = chosen(CATALOG["wan2.2-i2v-a14b"], card, precision=precision, offload=offload)
    assert (recipe.float8, recipe.offload) == (precision == "float8", offload)


@pytest.mark.parametrize(
    ("name", "backend"), [("native", "native"), ("cudnn", "_native_cudnn"), ("float8", "float8")]
)
def test_attention_can_be_set_by_name(name: Any, backend: str) -> None:
    card = Gpu("A100", 85.1, (8, 0))
    assert chosen(CATALOG["wan2.2-i2v-a14b"], card, attention=name).attention == backend


def test_a_step_cache_is_in_the_recipe_if_it_is_set() -> None:
    spec, card = CATALOG["wan2.2-i2v-a14b"], Gpu("H200", 150.1, (9, 0))
    assert chosen(spec, card).step_cache is None
    assert str(chosen(spec, card, step_cache=0.08)).endswith("compiled, step cache 0.08")


@pytest.mark.parametrize(
    ("gpu", "settings", "complaint"),
    [
        (None, {"precision": "float8"}, "float8, which needs a GPU"),
        (Gpu("A100", 85.1, (8, 0)), {"precision": "float8"}, "sm89 or newer; A100 is sm80"),
        (
            Gpu("H200", 150.1, (9, 0)),
            {"precision": "float8", "offload": "layer"},
            "Set WAN_OFFLOAD=stream",
        ),
        (
            Gpu("H200", 150.1, (9, 0)),
            {"compile": "on", "offload": "stream"},
            "Set WAN_COMPILE=off",
        ),
        (Gpu("H200", 150.1, (9, 0)), {"compile": "on", "offload": "layer"}, "Set WAN_COMPILE=off"),
    ],
)
def test_contradictory_settings_are_refused(
    gpu: Gpu | None, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        chosen(CATALOG["wan2.2-i2v-a14b"], gpu, **settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"device": "cpu", "float8": True},
        {"dtype": "float32", "float8": True},
        {"float8": True, "offload": "layer"},
        {"compiled": True, "offload": "stream"},
        {"compiled": True, "offload": "layer"},
    ],
)
def test_no_recipe_with_an_illegal_pair_can_be_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        replace(Recipe("cuda", "bfloat16"), **wrong)


# --- without a GPU -------------------------------------------------------------------------------


@every_row
def test_the_cpu_computes_in_float32(spec: ModelSpec) -> None:
    recipe, reason = choose(spec, None, Settings())
    assert recipe == Recipe("cpu", "float32")
    assert reason == "no GPU: float32 on the CPU"


@every_row
def test_the_cpu_runs_only_built_models(spec: ModelSpec) -> None:
    assert fits(spec, None) == spec.is_toy


def test_the_cpu_can_be_requested() -> None:
    assert detect("cpu") is None


def test_host_memory_is_known() -> None:
    assert 0.5 < detect_host().memory_gb < 10_000


# --- leaner recipes ------------------------------------------------------------------------------


def test_each_recipe_has_a_leaner_one_except_the_leanest() -> None:
    recipes = [Recipe("cuda:1", "bfloat16", float8=True, compiled=True)]
    while (next_recipe := leaner(recipes[-1])) is not None:
        recipes.append(next_recipe)
    assert [(recipe.offload, recipe.text_encoder) for recipe in recipes] == [
        ("none", "kept"),
        ("none", "moved"),
        ("stream", "moved"),
        ("layer", "kept"),
    ]
    assert {recipe.device for recipe in recipes} == {"cuda:1"}


@every_row
def test_a_leaner_recipe_needs_less(spec: ModelSpec) -> None:
    for gpu in CARDS:
        recipe = chosen(spec, gpu)
        while (next_recipe := leaner(recipe)) is not None:
            assert needs_gb(spec, next_recipe) < needs_gb(spec, recipe), gpu.name
            recipe = next_recipe


def test_on_a_cpu_networks_have_no_other_place() -> None:
    assert leaner(Recipe("cpu", "float32")) is None


def test_a_setting_that_fits_a_small_card_is_named() -> None:
    spec, card = CATALOG["wan2.2-i2v-a14b"], Gpu("RTX 4090", 25.3, (8, 9))
    assert least_gb(CATALOG["wan2.2-ti2v-5b"]) != least_gb(spec)
    assert smaller(spec, card).endswith(f"a WAN_RENDER_AREA below {spec.max_area} needs less")


# --- small models --------------------------------------------------------------------------------


def test_small_models_share_the_device_only_if_both_fit() -> None:
    spec = CATALOG["wan2.2-i2v-a14b"]
    for gpu in CARDS:
        recipe = chosen(spec, gpu)
        where = beside(spec, gpu, recipe)
        if where != "cpu":
            assert recipe.offload == "none", gpu.name
            assert gpu.total_gb - needs_gb(spec, recipe) >= 2.0, gpu.name


def test_the_memory_left_by_the_model_is_never_more_than_there_is() -> None:
    spec = CATALOG["wan2.2-i2v-a14b"]
    for gpu in CARDS:
        recipe = chosen(spec, gpu)
        spare = spare_gb(spec, gpu, recipe)
        assert spare == 0 or spare + needs_gb(spec, recipe) <= gpu.total_gb + 1e-9, gpu.name


def test_small_models_are_on_the_cpu_without_a_gpu() -> None:
    spec = CATALOG["wan-tiny"]
    recipe = chosen(spec, None, device="cpu")
    assert beside(spec, None, recipe) == "cpu"
    assert spare_gb(spec, None, recipe) == 0
