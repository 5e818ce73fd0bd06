"""Reference-to-video on a tiny VACE pipeline: the contents of its condition, by number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanVACEPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from wan_engine.catalog import CATALOG
from wan_engine.errors import NotServed
from wan_engine.families.continuation import latent_moments
from wan_engine.families.i2v import make_scheduler
from wan_engine.families.vace import letterboxed
from wan_engine.schema import Carry, FirstPicture, LastPicture, References, SegmentInput
from wan_engine.weights import LocatedLora

NAME = "wan-tiny-vace"
WIDTH, HEIGHT = 64, 48
RED, GREEN, BLUE = (Image.new("RGB", (40, 64), colour) for colour in ("red", "lime", "blue"))
Load = Callable[..., Any]


@pytest.fixture(scope="module")
def family(load: Load) -> Any:
    """Tests leave it unchanged."""
    return load(NAME)


def asked(*images: Image.Image, carry: Carry | None = None, frames: int = 9) -> SegmentInput:
    references = (References(images),) if images else ()
    return SegmentInput(
        "two of them", "blurry", (*references, carry or Carry()), WIDTH, HEIGHT, frames, seed=5
    )


def control(family: Any, segment: SegmentInput) -> torch.Tensor:
    """The condition of the transformers, [1, 96, references + t, h, w]."""
    seen: list[torch.Tensor] = []

    def note(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        seen.append(given["control_hidden_states"].clone())

    hook = family.pipeline.transformer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        family.denoise(segment, lambda _step: None)
    finally:
        hook.remove()
    return seen[0]


def encoded(family: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Normalised latents, computed by the VAE's own method without our shortcut."""
    vae = family.pipeline.vae
    latents = vae.encode(pixels).latent_dist.mode()
    mean, std = latent_moments(vae, latents)
    return (latents - mean) / std


def test_references_come_first_in_their_order_followed_by_grey_to_be_generated(family: Any) -> None:
    found = control(family, asked(RED, GREEN, BLUE))
    assert found.shape == (1, 96, 3 + 3, HEIGHT // 8, WIDTH // 8)
    for place, image in enumerate((RED, GREEN, BLUE)):
        wanted = encoded(family, letterboxed(image, WIDTH, HEIGHT)[None, :, None])
        assert torch.allclose(found[:, :16, place : place + 1], wanted, atol=1e-4)
        assert found[:, 16:, place].abs().max() == 0  # no second half; the mask keeps it
    grey = encoded(family, torch.zeros(1, 3, 9, HEIGHT, WIDTH))
    assert torch.allclose(found[:, :16, 3:], grey, atol=1e-4)
    assert torch.allclose(found[:, 16:32, 3:], grey, atol=1e-4)
    assert found[:, 32:, 3:].unique().tolist() == [1.0]


def test_the_condition_is_the_stock_pipelines_except_for_the_order(family: Any) -> None:
    ours = control(family, asked(RED, GREEN))
    stock = WanVACEPipeline(**family.pipeline.components, boundary_ratio=0.875)
    video, mask, references = stock.preprocess_conditions(
        None, None, [GREEN, RED], 1, HEIGHT, WIDTH, 9, torch.float32, torch.device("cpu")
    )
    latents = stock.prepare_video_latents(video, mask, references, None, torch.device("cpu"))
    theirs = torch.cat([latents, stock.prepare_masks(mask, references)], dim=1)
    assert (ours - theirs).abs().max() < 1e-5


def test_a_last_picture_is_conditioned_like_the_end_of_a_video_in_the_stock_pipeline(
    family: Any,
) -> None:
    given = asked(RED, GREEN, frames=17)
    last = BLUE.resize((WIDTH, HEIGHT))
    ours = control(family, replace(given, conditions=(*given.conditions, LastPicture(last))))
    stock = WanVACEPipeline(**family.pipeline.components, boundary_ratio=0.875)
    grey = Image.new("RGB", last.size, (128, 128, 128))
    black, white = (Image.new("L", last.size, level) for level in (0, 255))
    video, mask, references = stock.preprocess_conditions(
        [*[grey] * 16, last],
        [*[white] * 16, black],
        *([GREEN, RED], 1, HEIGHT, WIDTH, 17, torch.float32, torch.device("cpu")),
    )
    video[:, :, :16] = 0  # stock uses 128 of 255 for grey
    latents = stock.prepare_video_latents(video, mask, references, None, torch.device("cpu"))
    theirs = torch.cat([latents, stock.prepare_masks(mask, references)], dim=1)
    assert (ours - theirs).abs().max() < 1e-5
    assert family.pipeline.last is None  # for the next job


def test_a_later_segment_keeps_the_frames_that_the_one_before_ended_with(family: Any) -> None:
    kept = np.random.default_rng(1).integers(0, 256, (5, HEIGHT, WIDTH, 3), np.uint8)
    found = control(family, asked(RED, carry=Carry(frames=kept), frames=17))
    pixels = torch.zeros(1, 3, 17, HEIGHT, WIDTH)
    pixels[:, :, :5] = torch.from_numpy(kept).permute(3, 0, 1, 2)[None] / 255 * 2 - 1
    assert torch.allclose(found[:, :16, 1:], encoded(family, pixels), atol=1e-4)
    grey = encoded(family, torch.zeros_like(pixels))
    assert torch.allclose(found[:, 16:32, 1:], grey, atol=1e-4)
    masks = found[0, 32:, 1:].mean(dim=(0, 2, 3))
    assert masks[0] == 0 and masks[2:].tolist() == [1.0] * 3
    assert family.pipeline.kept is None  # for the next job


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_clip_has_its_frames_and_none_of_the_references(family: Any, count: int) -> None:
    clip = family.render(asked(*[RED, GREEN, BLUE, RED][:count]), lambda _step: None)
    frames = np.concatenate(list(clip.frames))
    assert frames.shape == (9, HEIGHT, WIDTH, 3) and clip.sound is None


def test_both_experts_work_and_a_seed_gives_the_same_frames(load: Load) -> None:
    family = load(NAME)
    calls = {"transformer": 0, "transformer_2": 0}
    for name in calls:

        def count(*_: Any, name: str = name) -> None:
            calls[name] += 1

        getattr(family.pipeline, name).register_forward_pre_hook(count)
    clips = [
        np.concatenate(list(family.render(asked(RED), lambda _step: None).frames)) for _ in "12"
    ]
    assert np.array_equal(*clips) and min(calls.values()) > 0


@pytest.mark.parametrize("size", [(4000, 1), (1, 4000), (240, 240), (64, 48), (8000, 5000)])
def test_a_reference_of_any_shape_is_shown_whole_in_the_middle_of_white(
    size: tuple[int, int],
) -> None:
    canvas = letterboxed(Image.new("RGB", size, "black"), WIDTH, HEIGHT)
    assert canvas.shape == (3, HEIGHT, WIDTH)
    dark = (canvas[0] < 0).nonzero()
    assert len(dark) > 0
    top, left = dark.min(dim=0).values.tolist()
    bottom, right = (dark.max(dim=0).values + 1).tolist()
    assert abs(top - (HEIGHT - bottom)) <= 1 and abs(left - (WIDTH - right)) <= 1
    assert (right - left == WIDTH) or (bottom - top == HEIGHT)


def test_inputs_that_the_row_does_not_take_are_refused_before_a_step(family: Any) -> None:
    segment = SegmentInput("x", "", (FirstPicture(RED),), WIDTH, HEIGHT, 9, seed=1)

    def never(_step: int) -> None:
        raise AssertionError("it has begun")

    with pytest.raises(NotServed, match="accepts references"):
        family.render(segment, never)


def test_a_pair_made_for_text_to_video_is_fused_whole_and_leaves_the_blocks_of_vace(
    load: Load, tmp_path: Path
) -> None:
    before = load(NAME).pipeline
    width = (
        before.transformer.config.num_attention_heads * before.transformer.config.attention_head_dim
    )
    inner = before.transformer.config.ffn_dim
    layers = {f"{one}_attn.{part}": (width, width) for one in ("self", "cross") for part in "qkvo"}
    layers |= {"ffn.0": (inner, width), "ffn.2": (width, inner)}
    files = []
    for expert, seed in (("high", 1), ("low", 2)):
        made = torch.Generator().manual_seed(seed)
        tensors: dict[str, torch.Tensor] = {}
        for block in range(len(before.transformer.blocks)):
            for layer, (rows, columns) in layers.items():
                key = f"diffusion_model.blocks.{block}.{layer}"
                tensors[f"{key}.lora_down.weight"] = torch.randn(4, columns, generator=made)
                tensors[f"{key}.lora_up.weight"] = torch.randn(rows, 4, generator=made)
                tensors[f"{key}.alpha"] = torch.tensor(8)
        path = tmp_path / f"{expert}.safetensors"
        save_file(tensors, path)
        files.append(LocatedLora(path, 1.0, expert))
    after = load(NAME, tuple(files)).pipeline
    for component, file in (("transformer", files[0]), ("transformer_2", files[1])):
        tensors = load_file(file.path)
        old, new = (dict(getattr(one, component).named_parameters()) for one in (before, after))
        changed = {name for name in old if not torch.equal(old[name], new[name])}
        assert len(changed) == len(tensors) / 3
        assert not any(name.startswith("vace_") for name in changed)
        query = "diffusion_model.blocks.0.self_attn.q.lora_{}.weight"
        wanted = 2 * tensors[query.format("up")] @ tensors[query.format("down")]
        name = "blocks.0.attn1.to_q.weight"
        assert torch.allclose(new[name] - old[name], wanted, atol=1e-4)


def test_the_four_step_row_is_the_pairs_schedule_with_two_steps_for_each_expert() -> None:
    row = CATALOG["wan2.2-vace-fun-a14b-4step"]
    scheduler = make_scheduler(row)
    scheduler.set_timesteps(row.steps)
    assert scheduler.timesteps.tolist() == pytest.approx([1000, 937.5, 833.33, 625], abs=0.01)
    assert (row.guidance_scale, row.guidance_scale_2) == (1, 1)
    assert [lora.expert for lora in row.loras] == ["high", "low"]
    assert all(lora.sha256 and len(lora.sha256) == 64 for lora in row.loras)
