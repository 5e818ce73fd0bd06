"""LoRA files named by requests change the clips of those requests and no others."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.clips import (
    FEWEST,
    SMALLEST,
    MakeSettings,
    RequestFor,
    few_frames,
    frame_hashes,
    local,
    probe,
)
from tests.families.lora_files import lora_file, noise, save
from wan_engine import Control, Engine, VideoRequest, toy
from wan_engine.catalog import CATALOG
from wan_engine.errors import Cancelled, ConfigurationError, InvalidRequest, NotServed
from wan_engine.families import load_family
from wan_engine.families.placement import experts
from wan_engine.runtime.recipes import Recipe
from wan_engine.schema import Lora
from wan_engine.weights.lora_folder import LoraFolder

QUERY = "diffusion_model.blocks.0.self_attn.q"


@pytest.fixture
def request_for(request_for: RequestFor) -> RequestFor:
    """The shortest clip, because these files change the weights and not the length."""

    def make(**fields: Any) -> VideoRequest:
        return request_for(**{"seconds": 2, **fields})

    return make


@pytest.fixture
def folder(tmp_path: Path, loaded: Engine) -> Path:
    """A folder with `anna`, `people/bob`, the pair `motion`, a LoRA for another model and a file
    that is no LoRA."""
    network = loaded.pool.main.family.pipeline.transformer  # type: ignore[union-attr]
    made = tmp_path / "loras"
    (made / "people").mkdir(parents=True)
    for seed, name in enumerate(("anna", "people/bob", "motion_HIGH_noise", "motion_LOW_noise")):
        lora_file(made / f"{name}.safetensors", network, 100 * seed)
    query = network.blocks[0].attn1.to_q.weight.shape[0]
    pair = {f"{QUERY}.lora_A.weight": noise(2, 48), f"{QUERY}.lora_B.weight": noise(48, 2)}
    save(pair, made / "other.safetensors")
    assert query != 48
    (made / "page.safetensors").write_text("<html>Sign in</html>")
    (made / "pickle.pt").write_bytes(b"\x80\x02")
    return made


@pytest.fixture
def engine(make_settings: MakeSettings, folder: Path, loaded: Engine) -> Engine:
    engine = few_frames(make_settings(**SMALLEST, safety="off", lora_dir=folder))
    engine.pool.main.family = loaded.pool.main.family
    return engine


def frames(engine: Engine, request: Any, control: Control | None = None) -> list[str]:
    return frame_hashes(local(engine.generate(request, control).video_url))


def weights(family: Any) -> list[torch.Tensor]:
    return [one.clone() for expert in experts(family.pipeline) for one in expert.parameters()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(*both) for both in zip(one, other, strict=True))


def test_clips_requested_in_turns_equal_those_made_alone(
    engine: Engine, unloaded: Engine, request_for: RequestFor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "wan_engine"):
        anna = frames(engine, request_for(loras=["anna"]))
        plain = frames(engine, request_for())
        bob = frames(engine, request_for(loras=[{"name": "people/bob", "scale": 0.5}]))
        again = frames(engine, request_for(loras=["anna"]))
    assert anna == again and len({*map(tuple, (anna, plain, bob))}) == 3
    assert frames(engine, request_for()) == plain
    unloaded.pool.main.family = None
    assert frames(unloaded, request_for()) == plain  # in a separate engine
    assert equal(weights(engine.pool.main.family), weights(unloaded.pool.main.family))
    changes = [line for line in caplog.messages if line.startswith("LoRA files of requests in")]
    asked = [line.split(": ", 1)[1].split(";")[0] for line in changes]
    assert asked == ["anna at 1", "none", "people/bob at 0.5", "anna at 1"]


def test_the_output_the_log_and_the_plan_name_the_files(
    engine: Engine, request_for: RequestFor, caplog: pytest.LogCaptureFixture
) -> None:
    asked = [{"name": "motion", "scale": 0.75, "expert": "low"}, "anna"]
    with caplog.at_level("INFO", "wan_engine"):
        result = engine.generate(request_for(loras=asked))
    assert "model wan-tiny; LoRA motion at 0.75 (low), anna at 1; seed 3;" in probe(
        local(result.video_url)
    )
    assert any(", LoRA motion at 0.75 (low), anna at 1, att" in line for line in caplog.messages)
    assert engine.dry_run(request_for(loras=asked))["loras"] == [
        {"name": "motion", "scale": 0.75, "expert": "low"},
        {"name": "anna", "scale": 1.0, "expert": None},
    ]
    assert engine.dry_run(request_for())["loras"] == []


def test_the_same_files_in_consecutive_jobs_are_fused_once(
    engine: Engine, request_for: RequestFor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "wan_engine"):
        first = frames(engine, request_for(loras=["anna"]))
        assert frames(engine, request_for(loras=["anna"])) == first
        assert frames(engine, request_for(loras=["anna"], seed=4)) != first
    assert sum(line.startswith("LoRA files of requests in") for line in caplog.messages) == 1


def test_out_of_memory_ends_with_a_leaner_recipe_and_the_same_files(
    engine: Engine, request_for: RequestFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = frames(engine, request_for(loras=["anna"]))
    tried: list[str] = []

    def load(spec: Any, place: Path, recipe: Recipe, loras: Any, _on_bytes: Any) -> Any:
        tried.append(recipe.text_encoder)
        family: Any = load_family(spec, place, Recipe("cpu", "float32"), loras)

        def full(*_: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

        if recipe.text_encoder == "kept":
            family.pipeline.transformer_2.register_forward_pre_hook(full)
        return family

    monkeypatch.setattr("wan_engine.pool.load_family", load)
    engine.pool.main.family = None
    engine.pool.main.recipe = Recipe("cuda", "bfloat16")
    assert frames(engine, request_for(loras=["anna"])) == expected
    assert tried == ["kept", "moved"]
    assert [str(one) for one in engine.pool.main.loras or ()] == ["anna at 1"]


def test_out_of_memory_while_they_are_fused_is_tried_again_on_a_leaner_recipe(
    engine: Engine, request_for: RequestFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = frames(engine, request_for(loras=["anna"]))
    loads: list[Recipe] = []

    def load(spec: Any, place: Path, recipe: Recipe, loras: Any, _on_bytes: Any) -> Any:
        loads.append(recipe)
        family: Any = load_family(spec, place, Recipe("cpu", "float32"), loras)
        if len(loads) == 1:
            put = family.swap._experts[1].put_in

            def full(*given: Any, **named: Any) -> None:
                put(*given, **named)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

            family.swap._experts[1].put_in = full
        return family

    monkeypatch.setattr("wan_engine.pool.load_family", load)
    engine.pool.main.family = None
    engine.pool.main.recipe = Recipe("cuda", "bfloat16")
    assert frames(engine, request_for(loras=["anna"])) == expected and len(loads) == 2


def test_a_job_cancelled_while_they_are_fused_leaves_the_plain_model_to_the_next(
    engine: Engine, request_for: RequestFor
) -> None:
    plain = frames(engine, request_for())
    told: list[str] = []

    def cancelling(progress: Any) -> None:
        told.append(progress.stage)
        if told.count("load") == 3:
            control.cancel()

    control = Control(on_progress=cancelling)
    with pytest.raises(Cancelled):
        engine.generate(request_for(loras=["anna"]), control)
    assert "denoise" not in told and engine.pool.main.loras == ()
    assert frames(engine, request_for()) == plain


def test_a_job_that_fails_while_rendering_does_not_change_the_files_of_the_next(
    engine: Engine, request_for: RequestFor
) -> None:
    plain = frames(engine, request_for())

    def cancelling(progress: Any) -> None:
        if progress.stage == "denoise" and progress.step:
            control.cancel()

    control = Control(on_progress=cancelling)
    with pytest.raises(Cancelled):
        engine.generate(request_for(loras=["anna"]), control)
    assert frames(engine, request_for()) == plain


def test_a_model_that_cannot_be_restored_is_loaded_again(
    engine: Engine, request_for: RequestFor, caplog: pytest.LogCaptureFixture
) -> None:
    plain = frames(engine, request_for())
    engine.pool.main.family = None
    frames(engine, request_for(loras=["anna"]))
    family: Any = engine.pool.main.family
    for one in family.swap._experts:

        def broken(_on_layer: Any) -> None:
            raise OSError("the volume is gone")

        one.take_out = broken
    with pytest.raises(OSError, match="gone"):
        engine.generate(request_for())
    assert engine.pool.main.family is None
    assert frames(engine, request_for()) == plain
    assert "is dropped: its LoRA files are half in" in caplog.text


def test_jobs_of_several_threads_each_have_their_own_files(
    engine: Engine, request_for: RequestFor
) -> None:
    asked: list[Any] = [["anna"], [], ["people/bob"]]
    alone = [frames(engine, request_for(loras=one)) for one in asked]
    found: dict[int, list[str]] = {}

    def job(number: int) -> None:
        found[number] = frames(engine, request_for(loras=asked[number]))

    threads = [threading.Thread(target=job, args=(number,)) for number in range(len(asked))]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert [found[number] for number in range(len(asked))] == alone


# --- refusals, before anything is fetched
# ----------------------------------------------------------

BAD: dict[str, tuple[Any, str]] = {
    "unknown": (
        ["nobody"],
        'field "loras[0].name" must be one of ["anna", "motion", "motion_HIGH_noise", '
        '"motion_LOW_noise", "other", "page", "people/bob"], got string "nobody"',
    ),
    "a pickle": (["pickle"], 'field "loras[0].name" must be one of'),
    "of another model": (
        ["anna", "other"],
        'field "loras[1].name" cannot be used with wan-tiny, got string "other": other.safetensors '
        "has nothing for this model, which is another than it was made for: diffusion_model.",
    ),
    "no LoRA file": (
        ["page"],
        'field "loras[0].name" cannot be used with wan-tiny, got string "page": page.safetensors '
        "is not a LoRA file: it is a web page, as a link that needs a login gives one",
    ),
    "a half twice": (
        ["motion", "motion_HIGH_noise"],
        'field "loras[1].name" must be another file than that of "loras[0]", got string '
        '"motion_HIGH_noise"',
    ),
}


@pytest.mark.parametrize(("loras", "sentence"), BAD.values(), ids=BAD)
def test_an_unusable_file_is_one_sentence_before_anything_is_fetched(
    engine: Engine, request_for: RequestFor, folder: Path, loras: Any, sentence: str
) -> None:
    before = engine.pool.main.loras
    request = request_for(loras=loras, image="http://192.0.2.1/nobody.png")
    with pytest.raises(InvalidRequest) as caught:
        engine.generate(request)
    said = str(caught.value)
    assert said.startswith(sentence) and "\n" not in said and "WAN_" not in said
    assert str(folder) not in said and engine.pool.main.loras == before


def test_numbers_that_are_not_finite_are_one_sentence(
    engine: Engine, request_for: RequestFor, folder: Path
) -> None:
    network = engine.pool.main.family.pipeline.transformer  # type: ignore[union-attr]
    lora_file(folder / "huge.safetensors", network, 5, size=1e38)
    plain = frames(engine, request_for())
    with pytest.raises(InvalidRequest, match=r'^field "loras" cannot be used: The LoRA files make'):
        engine.generate(request_for(loras=[{"name": "huge", "scale": 4}]))
    assert frames(engine, request_for()) == plain


def test_a_worker_without_a_folder_says_so(unloaded: Engine, request_for: RequestFor) -> None:
    with pytest.raises(
        NotServed, match=r'^field "loras" cannot be used: this worker has no folder'
    ):
        unloaded.generate(request_for(loras=["anna"]))


def test_a_worker_with_an_empty_folder_says_so(
    make_settings: MakeSettings, request_for: RequestFor, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    engine = few_frames(make_settings(**SMALLEST, lora_dir=tmp_path / "empty"))
    with pytest.raises(InvalidRequest, match=r"cannot be used: this worker has no LoRA files$"):
        engine.generate(request_for(loras=["anna"]))


def test_a_folder_that_does_not_exist_fails_the_start(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"WAN_LORA_DIR names .*, which is not a folder"):
        few_frames(make_settings(**SMALLEST, lora_dir=tmp_path / "nowhere"))


def test_a_model_with_one_transformer_takes_no_pair_and_no_expert(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    name = "wan-tiny-ti2v"
    engine = Engine(make_settings(**{**SMALLEST, "model": name}, lora_dir=tmp_path))
    family: Any = load_family(
        toy.MODELS[name], engine.pool.main.located.folder, Recipe("cpu", "float32")
    )
    for one in ("x_high", "x_low", "style"):
        lora_file(tmp_path / f"{one}.safetensors", family.pipeline.transformer, 1)
    located = engine.pool.main.located
    shelf = engine.lora_folder
    with pytest.raises(InvalidRequest) as caught:
        shelf.chosen([Lora("style", 1.0, "low")], located)
    assert str(caught.value) == (
        f'field "loras[0].expert" must be "both" for {name}, which has one transformer, '
        'got string "low"'
    )
    with pytest.raises(InvalidRequest, match=f"one file for {name}, which has one transformer"):
        shelf.chosen([Lora("x")], located)
    for asked in (Lora("style"), Lora("style", 1.0, "both"), Lora("x_low")):
        (chosen,) = shelf.chosen([asked], located)
        assert list(chosen.plans[0].changes) == ["high"]  # the name of the one transformer


# --- later shots ---------------------------------------------------------------------------------


@pytest.fixture
def shots(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Engine]:
    for rows, name in ((CATALOG, "wan-tiny"), (toy.MODELS, "wan-tiny-vace")):
        monkeypatch.setitem(rows, name, replace(rows[name], **FEWEST, steps=2))  # type: ignore[arg-type]
    folder = tmp_path / "loras"
    folder.mkdir()
    values = {**SMALLEST, "reference_model": "wan-tiny-vace", "safety": "off"}
    return Engine(make_settings(**values, lora_dir=folder))  # type: ignore[return-value]


def test_later_shots_have_them_too_and_are_crops_where_they_do_not_fit_the_other_model(
    shots: Engine, request_for: RequestFor, tmp_path: Path
) -> None:
    network: Any = load_family(
        CATALOG["wan-tiny"], shots.pool.main.located.folder, Recipe("cpu", "float32")
    ).pipeline.transformer  # type: ignore[attr-defined]
    query, patch = network.blocks[0].attn1.to_q.weight, network.patch_embedding.weight
    save({f"{QUERY}.diff": noise(*query.shape)}, tmp_path / "loras" / "both.safetensors")
    save({"patch_embedding.diff": noise(*patch.shape)}, tmp_path / "loras" / "first.safetensors")
    asked = {"shot_type": "multi", "enable_prompt_expansion": True, "seconds": 5}
    plain = shots.generate(request_for(**asked))
    both = shots.generate(request_for(**asked, loras=["both"]))
    assert plain.model == both.model == "wan-tiny and wan-tiny-vace"
    assert all(
        [str(one) for one in model.loras or ()] == ["both at 1"]
        for model in shots.pool.models.values()
    )
    first = shots.generate(request_for(**asked, loras=["first"]))
    assert first.model == "wan-tiny"
    told = shots.dry_run(request_for(**asked, loras=["first"]))["later_shots"]
    assert told["reason"] == (
        "each starts from a crop of the image, because the LoRA files do not fit wan-tiny-vace"
    )
    hashes = [frame_hashes(local(one.video_url)) for one in (plain, both, first)]
    count = plain.plan.shots[0].frames  # type: ignore[union-attr]
    assert hashes[0][:count] != hashes[1][:count] and hashes[0][count:] != hashes[1][count:]


# --- names ---------------------------------------------------------------------------------------


def test_names_are_looked_up_and_never_become_a_path(
    engine: Engine, request_for: RequestFor, folder: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes((folder / "anna.safetensors").read_bytes())
    (folder / "linked.safetensors").symlink_to(outside)
    (folder / "up").symlink_to(tmp_path)
    (folder / "inside.safetensors").symlink_to(folder / "anna.safetensors")
    (folder / ".hidden.safetensors").write_bytes(outside.read_bytes())
    (folder / "a.pt").write_bytes(b"PK")
    known = LoraFolder(engine.settings).found()
    assert "inside" in known
    assert not {"linked", "up/outside", ".hidden", "a", "a.pt"} & set(known)
    for name in ("linked", "up/outside", ".hidden", "a.pt"):
        with pytest.raises(InvalidRequest, match="must be one of"):
            engine.choose(request_for(loras=[name]).order())
    with pytest.raises(InvalidRequest, match="must be another file"):
        engine.choose(request_for(loras=["anna", "inside"]).order())


def test_a_name_that_no_request_can_have_is_never_shown(
    engine: Engine, folder: Path, request_for: RequestFor
) -> None:
    for name in (b"\xff", b"a\nb", b" anna"):
        (folder / os.fsdecode(name + b".safetensors")).write_bytes(b"x")
    with pytest.raises(InvalidRequest) as caught:
        engine.choose(request_for(loras=["nobody"]).order())
    sentence = str(caught.value)
    assert sentence.encode("utf-8").isascii() and "\n" not in sentence and '" anna"' not in sentence


def test_a_damaged_file_that_claims_a_huge_header_is_refused_without_reading_it(
    engine: Engine, folder: Path, request_for: RequestFor
) -> None:
    (folder / "huge.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(InvalidRequest, match="not a LoRA file: it is damaged"):
        engine.choose(request_for(loras=["huge"]).order())
