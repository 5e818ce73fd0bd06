"""How a model runs on which machine, over a table of cards."""

from __future__ import annotations

import pytest

from wan_engine.acceleration import Gpu, Recipe, beside, choose, detect, fits, leaner, spare_gb
from wan_engine.catalog import CATALOG, ModelSpec

CARDS = [
    Gpu("T4", 15.8, (7, 5)),
    Gpu("RTX 4090", 25.3, (8, 9)),
    Gpu("RTX 5090", 34.2, (12, 0)),
    Gpu("A40", 47.7, (8, 6)),
    Gpu("RTX PRO 6000", 102.0, (12, 0)),
    Gpu("A100", 85.1, (8, 0)),
    Gpu("H200", 150.1, (9, 0)),
] + [
    Gpu(f"card {gb} sm{major}{minor}", gb, (major, minor))
    for gb in (24.0, 48.0, 80.0, 141.0)
    for major, minor in ((7, 5), (8, 0), (9, 0), (12, 0))
]
MODERN = [gpu for gpu in CARDS if gpu.capability >= (8, 0)]
ROWS = list(CATALOG.values())

every_row = pytest.mark.parametrize("spec", ROWS, ids="{.name}".format)
every_card = pytest.mark.parametrize("gpu", CARDS, ids="{.name}".format)


def resident_gb(spec: ModelSpec, gpu: Gpu) -> float:
    """Twice the catalogue's figure where float32 is used."""
    return spec.resident_gb * (1 if gpu.capability >= (8, 0) else 2)


@every_row
@every_card
def test_the_choice_says_why(spec: ModelSpec, gpu: Gpu) -> None:
    _, reason = choose(spec, gpu, "auto")
    assert reason.startswith(gpu.name)
    assert f"{resident_gb(spec, gpu):g} GB" in reason
    assert reason.isprintable()


@every_row
@every_card
def test_a_model_is_offloaded_exactly_where_it_cannot_stay(spec: ModelSpec, gpu: Gpu) -> None:
    recipe, _ = choose(spec, gpu, "auto")
    expected = "model" if gpu.total_gb < resident_gb(spec, gpu) else "none"
    assert recipe.offload == expected


@every_row
@every_card
def test_bfloat16_is_used_where_the_card_computes_in_it(spec: ModelSpec, gpu: Gpu) -> None:
    recipe, _ = choose(spec, gpu, "auto")
    assert recipe.dtype == ("float32" if gpu.capability == (7, 5) else "bfloat16")


@every_row
@pytest.mark.parametrize("gpu", MODERN, ids="{.name}".format)
def test_a_model_that_stays_on_the_card_fits_it(spec: ModelSpec, gpu: Gpu) -> None:
    recipe, _ = choose(spec, gpu, "auto")
    assert recipe.offload == "model" or fits(spec, gpu)


@every_row
def test_only_a_tiny_model_fits_a_card_without_bfloat16(spec: ModelSpec) -> None:
    assert fits(spec, Gpu("old", 141.0, (7, 5))) == spec.built


@every_row
def test_a_larger_card_never_fits_less(spec: ModelSpec) -> None:
    by_size = sorted(MODERN, key=lambda gpu: gpu.total_gb)
    assert [fits(spec, gpu) for gpu in by_size] == sorted(fits(spec, gpu) for gpu in by_size)


@pytest.mark.parametrize(
    ("total_gb", "model", "fitting"),
    [
        (8.0, "wan2.2-ti2v-5b", False),
        (8.0, "wan-tiny", True),
        (24.0, "wan2.2-ti2v-5b", True),
        (24.0, "wan2.2-i2v-a14b-4step", False),
        (48.0, "wan2.2-i2v-a14b-4step", True),
        (80.0, "wan2.2-i2v-a14b", True),
        (141.0, "wan2.2-i2v-a14b", True),
    ],
)
def test_a_model_fits_the_cards_it_is_meant_for(total_gb: float, model: str, fitting: bool) -> None:
    assert fits(CATALOG[model], Gpu("card", total_gb, (8, 9))) == fitting


def test_the_quality_tier_stays_on_a_card_of_141_gb() -> None:
    recipe, _ = choose(CATALOG["wan2.2-i2v-a14b"], Gpu("H200", 141.0, (9, 0)), "auto")
    assert recipe == Recipe("cuda", "bfloat16", offload="none")


def test_the_quality_tier_goes_one_network_at_a_time_on_80_gb() -> None:
    recipe, reason = choose(CATALOG["wan2.2-i2v-a14b"], Gpu("A100", 80.0, (8, 0)), "auto")
    assert recipe == Recipe("cuda", "bfloat16", offload="model")
    assert reason == "A100 with 80 GB is less than 88 GB: one network at a time"


@pytest.mark.parametrize(
    ("asked", "device"), [("auto", "cuda"), ("cuda", "cuda"), ("cuda:1", "cuda:1")]
)
def test_the_device_is_the_one_that_was_asked_for(asked: str, device: str) -> None:
    recipe, _ = choose(CATALOG["wan-tiny"], CARDS[0], asked)
    assert recipe.device == device


@every_row
def test_the_cpu_computes_in_float32(spec: ModelSpec) -> None:
    recipe, reason = choose(spec, None, "auto")
    assert recipe == Recipe("cpu", "float32", offload="none")
    assert reason == "no GPU: float32 on the CPU"


@every_row
def test_the_cpu_runs_only_what_is_built(spec: ModelSpec) -> None:
    assert fits(spec, None) == spec.built


def test_the_cpu_can_be_asked_for() -> None:
    assert detect("cpu") is None


def test_each_recipe_has_a_leaner_one_until_there_is_none() -> None:
    recipes = [Recipe("cuda:1", "bfloat16")]
    while (next_recipe := leaner(recipes[-1])) is not None:
        recipes.append(next_recipe)
    assert [recipe.offload for recipe in recipes] == ["none", "model", "layer"]
    assert {(recipe.device, recipe.dtype) for recipe in recipes} == {("cuda:1", "bfloat16")}


def test_a_cpu_has_no_other_place_for_its_networks() -> None:
    assert leaner(Recipe("cpu", "float32")) is None


@pytest.mark.parametrize(
    ("gpu", "spare"),
    [
        (Gpu("H200", 150.0, (9, 0)), 60.0),  # 88 GB stay there, and the classifiers
        (Gpu("A100", 85.0, (8, 0)), 39.0),  # one network at a time, 46 GB
        (Gpu("T4", 15.8, (7, 5)), 0.0),  # float32: not what the figures are of
        (None, 0.0),
    ],
)
def test_what_the_model_leaves_free_is_told(gpu: Gpu | None, spare: float) -> None:
    spec = CATALOG["wan2.2-i2v-a14b"]
    recipe, _ = choose(spec, gpu, "auto")
    assert spare_gb(spec, gpu, recipe) == pytest.approx(spare)


@pytest.mark.parametrize(
    ("total_gb", "capability", "expected"),
    [
        (141, (9, 0), "cuda"),
        (90, (9, 0), "cuda"),
        (89.9, (9, 0), "cpu"),  # the model's 88 GB and not 2 more
        (80, (8, 0), "cpu"),  # one network at a time
        (300, (7, 5), "cpu"),  # no bfloat16
    ],
)
def test_small_models_are_beside_a_model_only_where_both_fit(
    total_gb: float, capability: tuple[int, int], expected: str
) -> None:
    spec = CATALOG["wan2.2-i2v-a14b"]
    gpu = Gpu("card", total_gb, capability)
    recipe, _ = choose(spec, gpu, "auto")
    assert beside(spec, gpu, recipe) == expected


def test_small_models_are_on_the_cpu_without_a_gpu() -> None:
    spec = CATALOG["wan-tiny"]
    recipe, _ = choose(spec, None, "cpu")
    assert beside(spec, None, recipe) == "cpu"
