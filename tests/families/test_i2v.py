"""The image-to-video family on tiny checkpoints of both kinds, loaded by the production code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.families.conftest import stock
from tests.rows import ROWS
from wan_engine import toy
from wan_engine.errors import ConfigurationError, OutOfMemory
from wan_engine.families import load_family
from wan_engine.families.base import stream_decode, to_frames
from wan_engine.families.i2v import DistilledEulerScheduler, make_scheduler
from wan_engine.runtime.recipes import Recipe
from wan_engine.schema import FirstPicture, SegmentInput
from wan_engine.weights import LocatedLora

CPU = Recipe("cpu", "float32")
KINDS = ("wan-tiny", "wan-tiny-ti2v")
RANK = 2


def segment(width: int = 64, height: int = 64, frames: int = 9, **changes: Any) -> SegmentInput:
    image = Image.linear_gradient("L").convert("RGB").resize((width, height))
    values: dict[str, Any] = {
        "prompt": "a rocket rises",
        "negative_prompt": "blurry",
        "conditions": (FirstPicture(image),),
        "width": width,
        "height": height,
        "frames": frames,
        "seed": 5,
    }
    return SegmentInput(**{**values, **changes})


def ignore(_step: int) -> None:
    return None


@pytest.mark.parametrize("name", KINDS)
def test_a_streamed_decode_equals_the_plain_decode(load: Callable[..., Any], name: str) -> None:
    vae = load(name).pipeline.vae
    latents = torch.randn(1, vae.config.z_dim, 5, 4, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = vae.decode(latents).sample
    pieces = list(stream_decode(vae, latents))
    assert [piece.shape[2] for piece in pieces] == [1, 4, 4, 4, 4]
    assert (torch.cat(pieces, dim=2) - plain).abs().max().item() == 0.0


def test_an_abandoned_stream_leaves_no_features_behind(load: Callable[..., Any]) -> None:
    vae = load("wan-tiny").pipeline.vae
    stream = stream_decode(vae, torch.zeros(1, 16, 3, 4, 4))
    next(stream)
    stream.close()
    assert all(feature is None for feature in vae._feat_map)


def test_frames_are_rounded_bytes() -> None:
    sample = torch.tensor([-1.0, 0.0, 1.0, 0.999]).view(1, 1, 1, 1, 4).expand(1, 3, 2, 1, 4)
    frames = next(to_frames(one for one in [sample]))
    assert frames.dtype == np.uint8 and frames.shape == (2, 1, 4, 3)
    assert frames[0, 0, :, 0].tolist() == [0, 128, 255, 255]


@pytest.mark.parametrize("name", KINDS)
def test_a_segment_becomes_as_many_frames_as_asked(load: Callable[..., Any], name: str) -> None:
    family = load(name)
    steps: list[int] = []
    latents = family.denoise(segment(frames=9), steps.append)
    chunks = list(family.decode(latents))
    assert steps == sorted(steps)
    assert sorted(set(steps)) == list(range(ROWS[name].steps + 1))
    assert sum(len(chunk) for chunk in chunks) == 9
    assert chunks[0].shape[1:] == (64, 64, 3) and chunks[0].dtype == np.uint8


@pytest.mark.parametrize("name", KINDS)
def test_the_same_seed_gives_the_same_latents(load: Callable[..., Any], name: str) -> None:
    family = load(name)
    first = family.denoise(segment(seed=7), ignore)
    family.denoise(segment(seed=8), ignore)
    assert torch.equal(first, family.denoise(segment(seed=7), ignore))
    assert not torch.equal(first, family.denoise(segment(seed=8), ignore))


def test_the_engines_latents_equal_the_stock_pipelines(load: Callable[..., Any]) -> None:
    family = load("wan-tiny")
    wanted = segment()
    plain = stock(family.pipeline)(
        image=wanted.find(FirstPicture).image,
        prompt=wanted.prompt,
        width=64,
        height=64,
        num_frames=9,
        num_inference_steps=4,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(wanted.seed),
        output_type="np",
    ).frames[0]
    frames = np.concatenate(list(family.decode(family.denoise(wanted, ignore))))
    assert np.abs(frames - plain * 255).max() <= 0.51  # half a level, from rounding


def test_both_experts_run_and_cfg_uses_the_negative_prompt(load: Callable[..., Any]) -> None:
    family = load("wan-tiny", guidance_scale=3.0, guidance_scale_2=2.0)
    calls = {"transformer": 0, "transformer_2": 0}
    for name in calls:

        def count(_module: Any, _inputs: Any, name: str = name) -> None:
            calls[name] += 1

        getattr(family.pipeline, name).register_forward_pre_hook(count)
    plain = family.denoise(segment(), ignore)
    assert calls == {"transformer": 4, "transformer_2": 4}  # two steps each, doubled by CFG
    assert not torch.equal(plain, family.denoise(segment(negative_prompt="green"), ignore))


def test_an_exception_of_the_step_callback_ends_the_run(load: Callable[..., Any]) -> None:
    steps: list[int] = []

    def stop(step: int) -> None:
        steps.append(step)
        if step == 2:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        load("wan-tiny").denoise(segment(), stop)
    assert steps[-1] == 2 and set(steps) == {0, 1, 2}


def test_a_cancel_is_noticed_before_the_first_step(load: Callable[..., Any]) -> None:
    family = load("wan-tiny")

    def stop(_step: int) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        family.denoise(segment(), stop)
    assert not family.pipeline.text_encoder._forward_pre_hooks


def test_four_distilled_steps_are_those_of_the_training() -> None:
    scheduler = DistilledEulerScheduler(shift=5.0)
    scheduler.set_timesteps(4, device="cpu")
    assert scheduler.timesteps.tolist() == pytest.approx([1000, 937.5, 833.333, 625], abs=1e-3)
    assert scheduler.sigmas.tolist()[-1] == 0.0


@pytest.mark.parametrize("name", list(ROWS))
def test_every_row_has_a_scheduler_with_its_own_shift(name: str) -> None:
    spec = ROWS[name]
    scheduler: Any = make_scheduler(spec)
    scheduler.set_timesteps(spec.steps, device="cpu")
    assert len(scheduler.timesteps) == spec.steps
    config = scheduler.config
    shift = config.shift if spec.sampler == "distilled-euler" else config.flow_shift
    assert shift == spec.flow_shift


def test_the_checkpoints_own_flow_shift_is_not_used(load: Callable[..., Any]) -> None:
    family = load("wan-tiny", sampler="unipc", flow_shift=5.0)
    assert family.pipeline.scheduler.config.flow_shift == 5.0  # the folder says 3.0


@pytest.mark.parametrize("name", KINDS)
def test_bfloat16_stays_near_float32(tiny_cache: Path, name: str) -> None:
    folder = toy.build(name, tiny_cache / name)
    plain, half = (
        load_family(ROWS[name], folder, Recipe("cpu", dtype)) for dtype in ("float32", "bfloat16")
    )
    first, second = (
        np.concatenate(list(family.decode(family.denoise(segment(), ignore)))).astype(int)
        for family in (plain, half)
    )
    assert np.abs(first - second).mean() < 1
    assert half.pipeline.transformer.dtype == torch.bfloat16
    assert half.pipeline.vae.dtype == torch.float32


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("offload", ["model", "stream", "layer"])
def test_offloading_changes_no_frame(
    load: Callable[..., Any], tiny_cache: Path, name: str, offload: Any
) -> None:
    resident = load(name)
    recipe = Recipe("cpu", "float32", offload)
    offloaded = load_family(ROWS[name], tiny_cache / name, recipe)
    first, again, plain = (
        np.concatenate(list(family.decode(family.denoise(segment(), ignore))))
        for family in (offloaded, offloaded, resident)
    )
    assert plain.shape == (9, 64, 64, 3)
    assert np.array_equal(first, plain) and np.array_equal(again, plain)


def test_a_repository_that_names_the_text_to_video_pipeline_loads(
    tiny_cache: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "converted"
    shutil.copytree(toy.build("wan-tiny-ti2v", tiny_cache / "wan-tiny-ti2v"), folder)
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("image_encoder", "image_processor"):
        index.pop(name, None)
    index["_class_name"] = "WanPipeline"  # as in Wan-AI/Wan2.2-TI2V-5B-Diffusers
    (folder / "model_index.json").write_text(json.dumps(index))
    family = load_family(ROWS["wan-tiny-ti2v"], folder, CPU)
    assert family.denoise(segment(), ignore).shape == (1, 48, 3, 4, 4)


def lora_file(path: Path, *, seed: int) -> tuple[Path, torch.Tensor]:
    """A LoRA for one projection, with the keys of the distilled pair, and the change that it
    makes."""
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(RANK, 24, generator=generator)
    up = torch.randn(24, RANK, generator=generator)
    key = "diffusion_model.blocks.0.self_attn.q"
    save_file({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}, path)
    return path, up @ down


def query(family: Any, component: str) -> torch.Tensor:
    weight: torch.Tensor = getattr(family.pipeline, component).blocks[0].attn1.to_q.weight
    return weight.detach()


def test_a_lora_pair_is_fused_each_into_its_expert(
    load: Callable[..., Any], tmp_path: Path
) -> None:
    high, high_delta = lora_file(tmp_path / "high.safetensors", seed=1)
    low, low_delta = lora_file(tmp_path / "low.safetensors", seed=2)
    pair = (LocatedLora(high, 1.0, "high"), LocatedLora(low, 0.5, "low"))
    plain, fused = load("wan-tiny"), load("wan-tiny", pair)
    for component, delta in (("transformer", high_delta), ("transformer_2", 0.5 * low_delta)):
        added = query(fused, component) - query(plain, component)
        assert torch.allclose(added, delta, atol=1e-5)
    assert not hasattr(fused.pipeline.transformer, "peft_config")


def test_several_loras_on_one_expert_add_up(load: Callable[..., Any], tmp_path: Path) -> None:
    first, first_delta = lora_file(tmp_path / "first.safetensors", seed=1)
    second, second_delta = lora_file(tmp_path / "second.safetensors", seed=2)
    loras = (LocatedLora(first, 1.0, "both"), LocatedLora(second, 0.25, "high"))
    plain, fused = load("wan-tiny"), load("wan-tiny", loras)
    added = query(fused, "transformer") - query(plain, "transformer")
    assert torch.allclose(added, first_delta + 0.25 * second_delta, atol=1e-5)
    added = query(fused, "transformer_2") - query(plain, "transformer_2")
    assert torch.allclose(added, first_delta, atol=1e-5)


PARTS = {
    "wan-tiny": {
        "pipeline.text_encoder": 1,
        "pipeline.vae.encoder.conv_out": 3,
        "pipeline.transformer": 1,
        "pipeline.transformer_2": 1,
        "_decoder.decoder": 3,  # first, second and later latents
    },
    "wan-tiny-ti2v": {
        "pipeline.text_encoder": 1,
        "pipeline.vae.encoder.conv_out": 1,
        "pipeline.transformer": 2,
        "_decoder.decoder": 3,
    },
}


@pytest.mark.parametrize("name", KINDS)
def test_the_warm_up_uses_everything_that_a_job_uses(load: Callable[..., Any], name: str) -> None:
    family = load(
        name, guidance_scale=3.0, recipe=Recipe("cpu", "float32", decode_dtype="bfloat16")
    )
    spec, used = family.spec, dict.fromkeys(PARTS[name], 0)
    for part in used:

        def count(_module: Any, _inputs: Any, part: str = part) -> None:
            used[part] += 1

        attrgetter(part)(family).register_forward_pre_hook(count)
    family.warm_up(64, 64)
    assert used == PARTS[name]
    assert family.spec is spec


def test_a_cancelled_warm_up_leaves_the_steps_of_the_row(load: Callable[..., Any]) -> None:
    family = load("wan-tiny")

    def stop(_step: int) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        family.warm_up(64, 64, stop)
    assert family.spec.steps == ROWS["wan-tiny"].steps


@pytest.mark.parametrize(
    ("area", "small", "expected"),
    [
        (1280 * 720, 3.0, 5.0),
        (832 * 480, 3.0, 3.0),
        (848 * 480, 3.0, 3.0),  # a shape that fits better
        (480 * 480, 3.0, 3.0),
        (832 * 480, None, 5.0),
        (None, 3.0, 5.0),
    ],
)
def test_a_small_render_has_the_shift_that_its_row_sets_for_it(
    area: int | None, small: float | None, expected: float
) -> None:
    spec = replace(ROWS["wan2.2-i2v-a14b"], flow_shift_480p=small)
    scheduler: Any = make_scheduler(spec, area)
    assert scheduler.config.flow_shift == expected


def test_a_lora_for_a_missing_expert_is_refused(load: Callable[..., Any], tmp_path: Path) -> None:
    path, _ = lora_file(tmp_path / "low.safetensors", seed=1)
    with pytest.raises(ConfigurationError, match=r"low\.safetensors"):
        load("wan-tiny-ti2v", (LocatedLora(path, 1.0, "low"),))


def test_too_little_memory_for_the_weights_is_a_sentence(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("diffusers.WanTransformer3DModel.to", full)
    folder = toy.build("wan-tiny", tiny_cache / "wan-tiny")
    with pytest.raises(OutOfMemory, match="too little GPU memory for wan-tiny"):
        load_family(ROWS["wan-tiny"], folder, CPU)
