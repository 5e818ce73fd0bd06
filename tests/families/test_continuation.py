"""How segments continue, on tiny checkpoints of both kinds: layouts compared with hand-built ones,
latents and frames to the bit. Random weights cannot show how a join looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.families.conftest import stock
from tests.rows import ROWS
from wan_engine import toy
from wan_engine.families import load_family
from wan_engine.families.base import stream_decode
from wan_engine.families.continuation import Start
from wan_engine.runtime.recipes import Recipe
from wan_engine.schema import Carry, FirstPicture, SegmentInput

Frames = np.ndarray
WAYS = [
    ("wan-tiny", "last_frames"),
    ("wan-tiny", "svi"),
    ("wan-tiny-ti2v", "latents"),
    ("wan-tiny-ti2v", "last_frames"),
]
SIZE = 64


@pytest.fixture(scope="module")
def loaded(tiny_cache: Path) -> Callable[..., Any]:
    families: dict[tuple[str, str], Any] = {}

    def load(name: str, continuation: str, *, offload: Any = "none", **changes: Any) -> Any:
        if (name, offload) not in families:
            folder = toy.build(name, tiny_cache / name)
            recipe = Recipe("cpu", "float32", offload)
            families[name, offload] = load_family(ROWS[name], folder, recipe)
        family = families[name, offload]
        family.spec = replace(ROWS[name], continuation=continuation, **changes)
        return family

    return load


Loaded = Callable[..., Any]


def ignore(_step: int) -> None:
    return None


def run(family: Any, carry: Carry, *, seed: int, frames: int = 17) -> tuple[torch.Tensor, Frames]:
    """One segment as the engine runs it. `carry` holds its end for the next segment."""
    image = Image.linear_gradient("L").convert("RGB").resize((SIZE, SIZE))
    asked = SegmentInput(
        "a rocket rises", "blurry", (FirstPicture(image), carry), *(SIZE, SIZE, frames, seed)
    )
    latents = family.denoise(asked, ignore)
    shown = np.concatenate(list(family.decode(latents, carry)))
    carry.frames = shown[-family.spec.overlap_frames :]
    return latents, shown


def some_frames(count: int) -> Frames:
    return np.random.default_rng(3).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def prepared(
    family: Any, start: Start | None, frames: int = 17, last: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """The inputs of the stock loop: noise, condition and, for the TI2V kind, the mask."""
    pipeline = family.pipeline
    pipeline.start = start
    image = torch.linspace(-1, 1, 3 * SIZE * SIZE).view(1, 3, SIZE, SIZE)
    channels = pipeline.vae.config.z_dim
    generator = torch.Generator().manual_seed(4)
    try:
        with torch.no_grad():
            parts: tuple[torch.Tensor, ...] = pipeline.prepare_latents(
                *(image, 1, channels, SIZE, SIZE, frames, torch.float32, "cpu", generator),
                last_image=last,
            )
    finally:
        pipeline.start = None
    return parts


def encoded(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    normalised: torch.Tensor = (latents - mean) / std
    return normalised


# --- the condition -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5, 9])
def test_last_frames_go_through_the_mask_channels(loaded: Loaded, count: int) -> None:
    family, frames = loaded("wan-tiny", "last_frames"), some_frames(count)
    _, condition = prepared(family, Start(frames=frames))
    assert condition.shape == (1, 4 + 16, 5, 8, 8)
    # The mask has a channel for each pixel frame of a latent. The first latent is one frame.
    by_hand = [1.0] * ((count - 1) // 4 + 1) + [0.0] * (4 - (count - 1) // 4)
    for channel in range(4):
        mask = condition[0, channel]
        assert mask.amin(dim=(1, 2)).tolist() == mask.amax(dim=(1, 2)).tolist() == by_hand
    pixels = torch.zeros(1, 3, 17, SIZE, SIZE)
    pixels[0, :, :count] = torch.from_numpy(frames).permute(3, 0, 1, 2) / 127.5 - 1
    assert torch.allclose(condition[:, 4:], encoded(family.pipeline.vae, pixels), atol=1e-4)


@pytest.mark.parametrize("name", ["wan-tiny", "wan-tiny-ti2v"])
def test_one_last_frame_gives_the_stock_pipelines_condition_of_that_image(
    loaded: Loaded, name: str
) -> None:
    family, frame = loaded(name, "last_frames"), some_frames(1)
    pipeline, picture = family.pipeline, Image.fromarray(frame[0])
    image = pipeline.video_processor.preprocess(picture, height=SIZE, width=SIZE)
    ours = prepared(family, Start(frames=frame))
    generator, channels = torch.Generator().manual_seed(4), pipeline.vae.config.z_dim
    with torch.no_grad():
        wanted = stock(pipeline).prepare_latents(
            image, 1, channels, SIZE, SIZE, 17, torch.float32, "cpu", generator
        )
    assert torch.equal(ours[0], wanted[0])
    assert torch.equal(ours[1][:, :, : wanted[1].shape[2]], wanted[1])
    if name == "wan-tiny-ti2v":
        assert torch.equal(ours[2], wanted[2])


def a_last_picture() -> torch.Tensor:
    return torch.linspace(1, -1, 3 * SIZE * SIZE).view(1, 3, SIZE, SIZE)


def test_a_last_picture_is_conditioned_as_in_the_stock_pipeline(loaded: Loaded) -> None:
    family, last = loaded("wan-tiny", "last_frames"), a_last_picture()
    pipeline = family.pipeline
    image = torch.linspace(-1, 1, 3 * SIZE * SIZE).view(1, 3, SIZE, SIZE)
    generator, channels = torch.Generator().manual_seed(4), pipeline.vae.config.z_dim
    with torch.no_grad():
        wanted = stock(pipeline).prepare_latents(
            *(image, 1, channels, SIZE, SIZE, 17, torch.float32, "cpu", generator),
            last_image=last,
        )
    noise, condition = prepared(family, None, last=last)
    assert torch.equal(noise, wanted[0]) and torch.equal(condition, wanted[1])
    assert mask_of(condition) == [[1, 1, 1, 1], *[[0, 0, 0, 0]] * 3, [0, 0, 0, 1]]


def test_a_segment_that_continues_has_the_last_picture_behind_its_grey(loaded: Loaded) -> None:
    family, frames, last = loaded("wan-tiny", "last_frames"), some_frames(5), a_last_picture()
    _, condition = prepared(family, Start(frames=frames), last=last)
    assert mask_of(condition) == [*[[1, 1, 1, 1]] * 2, *[[0, 0, 0, 0]] * 2, [0, 0, 0, 1]]
    pixels = torch.zeros(1, 3, 17, SIZE, SIZE)
    pixels[0, :, :5] = torch.from_numpy(frames).permute(3, 0, 1, 2) / 127.5 - 1
    pixels[:, :, -1] = last
    assert torch.allclose(condition[:, 4:], encoded(family.pipeline.vae, pixels), atol=1e-4)


def mask_of(condition: torch.Tensor) -> list[list[float]]:
    """The four mask channels of each latent, which are constant over the picture."""
    mask = condition[0, :4]
    assert torch.equal(mask.amin(dim=(2, 3)), mask.amax(dim=(2, 3)))
    return [list(map(float, column)) for column in mask[:, :, 0, 0].T]


@pytest.mark.parametrize("latents", [1, 2, 3])
def test_carried_latents_are_the_clean_prefix_of_the_next_segment(
    loaded: Loaded, latents: int
) -> None:
    family = loaded("wan-tiny-ti2v", "latents")
    clean = torch.randn(1, 48, latents, 4, 4, generator=torch.Generator().manual_seed(2))
    _, condition, mask = prepared(family, Start(latents=clean))
    assert torch.equal(condition[:, :, :latents], clean)
    assert condition[:, :, latents:].abs().max() == 0
    assert mask.shape == (1, 1, 5, 4, 4)
    assert mask.amax(dim=(0, 1, 3, 4)).tolist() == [0.0] * latents + [1.0] * (5 - latents)
    assert mask[:, :, latents:].min() == 1


def test_last_frames_of_the_ti2v_kind_are_clean_latents_too(loaded: Loaded) -> None:
    family, frames = loaded("wan-tiny-ti2v", "last_frames"), some_frames(5)
    _, condition, mask = prepared(family, Start(frames=frames))
    pixels = (torch.from_numpy(frames).permute(3, 0, 1, 2) / 127.5 - 1)[None]
    wanted = encoded(family.pipeline.vae, pixels)
    assert torch.allclose(condition[:, :, :2], wanted, atol=1e-4)
    assert mask[0, 0, :, 0, 0].tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("later", [False, True])
def test_svi_is_anchor_then_last_latent_then_zeros(loaded: Loaded, later: bool) -> None:
    family = loaded("wan-tiny", "svi")
    last = torch.randn(1, 16, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    start = Start(latents=last if later else None, anchored=True)
    _, condition = prepared(family, start)
    image = torch.linspace(-1, 1, 3 * SIZE * SIZE).view(1, 3, 1, SIZE, SIZE)
    by_hand = torch.zeros(1, 20, 5, 8, 8)
    by_hand[:, :4, 0] = 1  # of the anchor alone
    by_hand[:, 4:, :1] = encoded(family.pipeline.vae, image)
    if later:
        by_hand[:, 4:, 1:2] = last
    assert torch.allclose(condition, by_hand, atol=1e-5)
    assert condition[:, :, 2:].abs().max() == 0  # zeros, not the latents of grey


@pytest.mark.parametrize(("name", "continuation"), WAYS)
def test_the_noise_is_that_of_the_stock_pipeline(
    loaded: Loaded, name: str, continuation: str
) -> None:
    family = loaded(name, continuation)
    starts = {
        "last_frames": Start(frames=some_frames(5)),
        "latents": Start(latents=torch.zeros(1, 48, 2, 4, 4)),
        "svi": Start(anchored=True),
    }
    noise = prepared(family, starts[continuation])[0]
    assert torch.equal(noise, prepared(family, None)[0])


def test_re_encoding_uses_a_float32_vae(loaded: Loaded, tiny_cache: Path) -> None:
    folder = toy.build("wan-tiny", tiny_cache / "wan-tiny")
    family: Any = load_family(ROWS["wan-tiny"], folder, Recipe("cpu", "bfloat16"))
    seen: list[torch.dtype] = []
    family.pipeline.vae.encoder.conv_in.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0].dtype)
    )
    carry = Carry()
    for seed in (1, 2):
        run(family, carry, seed=seed)
    assert set(seen) == {torch.float32}


# --- segment after segment -----------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [1, 5, 9])
def test_the_prefix_latents_survive_to_the_bit(loaded: Loaded, overlap: int) -> None:
    family = loaded("wan-tiny-ti2v", "latents", overlap_frames=overlap)
    carry, count = Carry(), (overlap - 1) // 4 + 1
    first, _ = run(family, carry, seed=1)
    second, _ = run(family, carry, seed=2)
    third, _ = run(family, carry, seed=3)
    for before, after in ((first, second), (second, third)):
        assert torch.equal(before[:, :, -count:], after[:, :, :count])
        assert not torch.equal(before[:, :, count:], after[:, :, count:])


@pytest.mark.parametrize("overlap", [1, 5])
def test_latents_are_decoded_as_if_the_clip_were_one_run(loaded: Loaded, overlap: int) -> None:
    family = loaded("wan-tiny-ti2v", "latents", overlap_frames=overlap)
    carry, count = Carry(), (overlap - 1) // 4 + 1
    parts = [run(family, carry, seed=seed) for seed in (1, 2, 3)]
    latents = torch.cat([parts[0][0], *(part[:, :, count:] for part, _ in parts[1:])], dim=2)
    frames = np.concatenate([parts[0][1], *(shown[overlap:] for _, shown in parts[1:])])
    whole = np.concatenate(list(family.decode(latents)))
    assert len(whole) == 17 + 2 * (17 - overlap)
    assert np.array_equal(frames, whole)
    # A decoder that starts again makes different frames of the same latents, in all of the segment.
    fresh = np.concatenate(list(family.decode(parts[1][0])))[overlap:]
    assert (fresh != parts[1][1][overlap:]).any(axis=(1, 2, 3)).all()


def test_a_stream_in_two_parts_equals_one_stream(loaded: Loaded) -> None:
    for name in ("wan-tiny", "wan-tiny-ti2v"):
        vae = loaded(name, "last_frames").pipeline.vae
        noise = torch.Generator().manual_seed(1)
        latents = torch.randn(1, vae.config.z_dim, 6, 4, 4, generator=noise)
        whole = torch.cat(list(stream_decode(vae, latents)), dim=2)
        for cut in (1, 2, 5):
            memory: list[Any] = []
            pieces = [*stream_decode(vae, latents[:, :, :cut], memory)]
            vae.encode(torch.zeros(1, 3, 5, SIZE, SIZE))  # forgets the decoder's features
            pieces += stream_decode(vae, latents[:, :, cut:], memory)
            assert torch.equal(torch.cat(pieces, dim=2), whole), (name, cut)
        assert all(feature is None for feature in vae._feat_map)


@pytest.mark.parametrize(("name", "continuation"), WAYS)
def test_a_later_segment_is_as_long_and_depends_on_the_carry(
    loaded: Loaded, name: str, continuation: str
) -> None:
    family, carry = loaded(name, continuation), Carry()
    _, first = run(family, carry, seed=1)
    latents, second = run(family, carry, seed=2)
    assert first.shape == second.shape == (17, SIZE, SIZE, 3)
    alone, _ = run(family, Carry(), seed=2)
    assert not torch.equal(latents, alone)  # the carry made a difference
    other = Carry()
    run(family, other, seed=7)
    assert not torch.equal(run(family, other, seed=2)[0], latents)


@pytest.mark.parametrize(("name", "continuation"), WAYS)
def test_two_segments_are_unchanged_after_another_shot(
    loaded: Loaded, name: str, continuation: str
) -> None:
    family = loaded(name, continuation)
    runs = []
    for seeds in ((1, 2), (8, 9), (1, 2)):
        carry = Carry()
        runs.append([run(family, carry, seed=seed)[1] for seed in seeds])
    assert np.array_equal(runs[0], runs[2]) and not np.array_equal(runs[0], runs[1])


@pytest.mark.parametrize(("name", "continuation"), WAYS)
def test_only_the_overlap_is_kept(loaded: Loaded, name: str, continuation: str) -> None:
    family, carry = loaded(name, continuation), Carry()
    run(family, carry, seed=1)
    if continuation == "last_frames":
        assert carry.latents is None
    else:
        assert carry.latents.shape[2] == (1 if continuation == "svi" else 2)
        # A view would keep all latents of the segment in memory.
        assert carry.latents.untyped_storage().nbytes() == carry.latents.nbytes
    assert bool(carry.decoder) == (continuation == "latents")
    assert family.pipeline.start is None


@pytest.mark.parametrize(("name", "continuation"), WAYS)
def test_offloading_changes_no_later_frame(loaded: Loaded, name: str, continuation: str) -> None:
    results = {}
    for offload in ("none", "model", "layer"):
        family, carry = loaded(name, continuation, offload=offload), Carry()
        results[offload] = [run(family, carry, seed=seed)[1] for seed in (1, 2)]
    assert np.array_equal(results["none"], results["model"])
    assert np.array_equal(results["none"], results["layer"])


@pytest.mark.parametrize(("name", "continuation"), WAYS)
def test_a_later_segment_can_be_stopped_within_a_step(
    loaded: Loaded, name: str, continuation: str
) -> None:
    family, carry = loaded(name, continuation), Carry()
    run(family, carry, seed=1)
    steps: list[int] = []

    def stop(step: int) -> None:
        steps.append(step)
        if step == 2:
            raise RuntimeError("stop")

    image = Image.new("RGB", (SIZE, SIZE))
    asked = SegmentInput("a rocket", "", (FirstPicture(image), carry), SIZE, SIZE, 17, 2)
    with pytest.raises(RuntimeError, match="stop"):
        family.denoise(asked, stop)
    assert steps[-1] == 2 and family.pipeline.start is None


@pytest.mark.parametrize("name", ["wan-tiny", "wan-tiny-ti2v"])
def test_a_first_segment_equals_the_stock_pipelines(loaded: Loaded, name: str) -> None:
    family = loaded(name, ROWS[name].continuation)
    latents, _ = run(family, Carry(), seed=5)
    spec = family.spec
    wanted = stock(family.pipeline)(
        image=Image.linear_gradient("L").convert("RGB").resize((SIZE, SIZE)),
        prompt="a rocket rises",
        negative_prompt="blurry",
        width=SIZE,
        height=SIZE,
        num_frames=17,
        num_inference_steps=spec.steps,
        guidance_scale=spec.guidance_scale,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).frames
    assert torch.equal(latents, wanted)
