"""The rows of the catalogue are consistent, and a user's own checkpoint gets the row of its
kind."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest

from wan_engine import toy
from wan_engine.catalog import CATALOG, FALLBACK, ModelSpec, infer
from wan_engine.catalog import models as rows
from wan_engine.errors import ConfigurationError
from wan_engine.families import FAMILIES

LISTED = list(CATALOG.values())
ROWS = [*LISTED, *toy.MODELS.values()]
REAL = [row for row in ROWS if not row.is_toy]
TOYS = [row for row in ROWS if row.is_toy]
NAMES = "{.name}".format


def each(rows: Iterable[ModelSpec]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("spec", rows, ids=NAMES)


# --- the rows ------------------------------------------------------------------------------------


def test_names_are_unique() -> None:
    assert len(CATALOG) == len(rows._ROWS)


def test_titles_are_unique() -> None:
    assert len({row.title for row in ROWS}) == len(ROWS)


def test_rows_are_found_by_their_own_name() -> None:
    assert [name for name, row in CATALOG.items() if name != row.name] == []


@pytest.mark.parametrize("task", sorted({row.task for row in REAL}))
def test_the_best_models_of_a_task_come_first(task: str) -> None:
    rows = [row.networks for row in REAL if row.task == task]
    sizes = [networks.expert_gb * networks.experts for networks in rows]
    assert sizes == sorted(sizes)[::-1]


def test_of_two_models_of_equal_size_the_faster_comes_first() -> None:
    pairs = [(one, other) for one, other in pairwise(REAL) if one.networks == other.networks]
    assert [one.name for one, other in pairs if one.steps > other.steps] == []


def test_built_models_come_after_all_real_ones() -> None:
    assert [*REAL, CATALOG[FALLBACK]] == LISTED


def test_the_fallback_is_a_row_that_can_be_built() -> None:
    assert CATALOG[FALLBACK].is_toy


def test_every_real_kind_has_a_tiny_one() -> None:
    def kinds(rows: list[ModelSpec]) -> set[tuple[object, ...]]:
        return {(row.family, row.fps, row.max_frames, row.size_multiple) for row in rows}

    assert kinds(TOYS) == kinds(REAL)


@each(ROWS)
def test_a_name_can_be_a_folder(spec: ModelSpec) -> None:
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", spec.name)


@each(ROWS)
def test_a_title_fits_a_table(spec: ModelSpec) -> None:
    assert 0 < len(spec.title) <= 100
    assert spec.title.isprintable()


@each(ROWS)
def test_the_family_exists(spec: ModelSpec) -> None:
    assert spec.family in FAMILIES


@each(ROWS)
def test_the_trained_length_is_a_whole_number_of_latent_frames(spec: ModelSpec) -> None:
    assert spec.max_frames > 1
    assert spec.max_frames % 4 == (1 if spec.overlap_frames else 0)


@each(ROWS)
def test_the_trained_length_is_five_seconds(spec: ModelSpec) -> None:
    first = 5 * spec.fps + 1
    if spec.gives_sound:  # windows of sound overlap, so they are a little longer
        assert spec.max_frames == first + 4
        return
    # Without an overlap, segments have the fewest whole latent frames that hold five seconds.
    assert spec.max_frames == (first if spec.overlap_frames else -(-first // 4) * 4)


@each(ROWS)
def test_sides_are_multiples_of_what_the_vae_and_the_patches_need(spec: ModelSpec) -> None:
    assert spec.size_multiple in (16, 32, 64)


@each(ROWS)
def test_the_area_holds_whole_tiles(spec: ModelSpec) -> None:
    assert spec.max_area % spec.size_multiple**2 == 0


@each(ROWS)
def test_the_steps_can_be_run(spec: ModelSpec) -> None:
    assert 1 <= spec.steps <= 200


@each(ROWS)
def test_guidance_is_on_for_both_experts_or_for_none(spec: ModelSpec) -> None:
    second = spec.guidance_scale if spec.guidance_scale_2 is None else spec.guidance_scale_2
    assert spec.guidance_scale >= 1
    assert second >= 1
    assert (spec.guidance_scale > 1) == (second > 1)


@each(ROWS)
def test_distilled_weights_run_without_guidance(spec: ModelSpec) -> None:
    if spec.sampler == "distilled-euler":
        assert (spec.guidance_scale, spec.guidance_scale_2) == (1.0, 1.0)


@each(ROWS)
def test_the_shift_is_positive(spec: ModelSpec) -> None:
    assert spec.flow_shift > 0


@each(ROWS)
def test_there_is_a_negative_prompt(spec: ModelSpec) -> None:
    assert spec.negative_prompt.strip() or spec.gives_sound


@each(ROWS)
def test_the_licence_is_named(spec: ModelSpec) -> None:
    assert spec.licence not in ("", "unknown")


@each(ROWS)
def test_every_network_has_a_size_and_its_work_takes_memory(spec: ModelSpec) -> None:
    networks = spec.networks
    assert networks.experts == (2 if spec.guidance_scale_2 is not None else 1)
    sizes = (networks.expert_gb, networks.text_encoder_gb, networks.vae_gb, spec.working_gb)
    assert all(size > 0 for size in sizes)


@each(REAL)
def test_a_real_model_has_a_repository_at_a_pinned_revision(spec: ModelSpec) -> None:
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", spec.repo or "")
    if spec.family in ("vace", "s2v", "kandinsky"):  # no public commit of these is known
        assert spec.revision is None
    else:
        assert re.fullmatch(r"[0-9a-f]{40}", spec.revision or "")


@each(REAL)
def test_the_size_of_a_download_is_stated(spec: ModelSpec) -> None:
    assert spec.download_gb > 0


@each(ROWS)
def test_a_row_continues_in_a_way_that_its_condition_can_hold(spec: ModelSpec) -> None:
    assert spec.continuation in spec.continuations
    # Whole latent frames, unless the model gets the earlier frames in addition to its own.
    assert spec.overlap_frames % 4 == (0 if spec.continuation == "motion_frames" else 1)
    assert spec.overlap_frames < spec.max_frames


def test_a_single_expert_has_no_svi_pair() -> None:
    spec = infer("somebody/wan", {"_class_name": "WanImageToVideoPipeline"})
    assert spec.continuations == ("last_frames",)


@each(TOYS)
def test_a_built_model_is_not_downloaded(spec: ModelSpec) -> None:
    assert (spec.repo, spec.revision, spec.loras, spec.download_gb) == (None, None, (), 0)


@each(ROWS)
def test_every_lora_except_the_svi_pair_is_pinned_by_its_content(spec: ModelSpec) -> None:
    for lora in spec.loras:
        if lora.sha256 is None:
            assert "/SVI_v2_PRO_" in lora.path and spec.continuation == "svi"
        else:
            assert re.fullmatch(r"[0-9a-f]{64}", lora.sha256)
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", lora.repo)
        assert lora.path.endswith(".safetensors")


@each(ROWS)
def test_there_is_one_lora_for_each_expert(spec: ModelSpec) -> None:
    experts = [lora.expert for lora in spec.loras]
    assert experts == ["high", "low"] * (len(experts) // 2)


@each(ROWS)
def test_the_two_loras_are_different_files(spec: ModelSpec) -> None:
    assert len({(lora.path, lora.sha256) for lora in spec.loras}) == len(spec.loras)


# --- custom checkpoints --------------------------------------------------------------------------

OWN = ("name", "title", "repo", "revision", "licence", "loras")


def settings_of(spec: ModelSpec) -> dict[str, Any]:
    """The part of a row about running, without the part that describes the model."""
    return {key: value for key, value in vars(spec).items() if key not in OWN}


def test_two_experts_run_like_the_quality_tier() -> None:
    index = {"_class_name": "WanImageToVideoPipeline", "boundary_ratio": 0.9}
    assert settings_of(infer("me/mine", index)) == settings_of(CATALOG["wan2.2-i2v-a14b"])


@pytest.mark.parametrize("pipeline", ["WanPipeline", "WanImageToVideoPipeline"])
def test_expanded_timesteps_run_like_the_small_model(pipeline: str) -> None:
    index = {"_class_name": pipeline, "expand_timesteps": True, "boundary_ratio": None}
    assert settings_of(infer("me/mine", index)) == settings_of(CATALOG["wan2.2-ti2v-5b"])


@pytest.mark.parametrize("index", [{}, {"boundary_ratio": None, "expand_timesteps": False}])
def test_a_single_expert_has_a_single_guidance(index: dict[str, Any]) -> None:
    spec = infer("me/mine", {"_class_name": "WanImageToVideoPipeline", **index})
    assert (spec.guidance_scale, spec.guidance_scale_2) == (5.0, None)


@pytest.mark.parametrize(
    ("index", "row"),
    [
        ({"_class_name": "WanVACEPipeline", "boundary_ratio": 0.875}, "wan2.2-vace-fun-a14b"),
        ({"_class_name": "WanVACEPipeline", "boundary_ratio": None}, "wan2.1-vace-14b"),
        ({"_class_name": "WanSpeechToVideoPipeline"}, "wan2.2-s2v-14b"),
        (
            {
                "_class_name": "Kandinsky6TI2VAPipeline",
                "scheduler": ["diffusers", "PiflowScheduler"],
            },
            "kandinsky-6-lite-sound",
        ),
    ],
)
def test_a_folder_of_another_task_runs_like_its_row(index: dict[str, Any], row: str) -> None:
    spec, wanted = infer("me/mine", index), CATALOG[row]
    told = ("task", "family", "steps", "guidance_scale", "guidance_scale_2", "flow_shift_480p")
    assert [getattr(spec, name) for name in told] == [getattr(wanted, name) for name in told]


def test_a_sound_model_that_is_not_distilled_has_more_steps_and_cfg() -> None:
    scheduler = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    spec = infer("me/mine", {"_class_name": "Kandinsky6TI2VAPipeline", "scheduler": scheduler})
    assert (spec.steps, spec.guidance_scale) == (50, 5.0)


def test_an_own_checkpoint_claims_nothing_that_only_its_row_can_claim() -> None:
    index = {"_class_name": "WanImageToVideoPipeline", "boundary_ratio": 0.9}
    spec = infer("/models/mine", index)
    assert (spec.name, spec.repo, spec.revision) == ("/models/mine", None, None)
    assert (spec.loras, spec.is_toy, spec.licence) == ((), False, "unknown")
    assert "/models/mine" in spec.title


@pytest.mark.parametrize(
    ("index", "named"),
    [
        ({"_class_name": "FluxPipeline"}, "FluxPipeline"),
        ({"_class_name": "LTX2Pipeline"}, "LTX2Pipeline"),
        ({"_class_name": "WanPipeline", "boundary_ratio": 0.875}, "WanPipeline"),
        ({"_class_name": "WanPipeline"}, "WanPipeline"),
        ({}, "folder without model_index.json"),
    ],
)
def test_another_pipeline_is_refused_by_name(index: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^me/other holds a {named}; .* WAN_MODEL .*$"):
        infer("me/other", index)
