"""Pipelines from their files: the networks equal stock to the bit, and are loaded as a stream."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from tests.families.test_i2v import ignore, segment
from tests.rows import ROWS
from wan_engine import toy
from wan_engine.errors import ConfigurationError
from wan_engine.families import load_family, loading, placement, tensors
from wan_engine.families.continuation import ContinuingPipeline
from wan_engine.families.loading import load_pipeline
from wan_engine.runtime.recipes import Recipe

CPU = Recipe("cpu", "float32")
KINDS = ("wan-tiny", "wan-tiny-ti2v")
NETWORKS = ("transformer", "transformer_2", "text_encoder", "vae")
EXPERT = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny_cache: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, for tests to damage."""
    copy = tmp_path / "wan-tiny"
    shutil.copytree(toy.build("wan-tiny", tiny_cache / "wan-tiny"), copy)
    return copy


def networks(pipeline: Any) -> Iterator[tuple[str, Any]]:
    for name in NETWORKS:
        if (network := getattr(pipeline, name, None)) is not None:
            yield name, network


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", KINDS)
def test_every_network_equals_stock_to_the_bit(tiny_cache: Path, name: str, dtype: str) -> None:
    folder = toy.build(name, tiny_cache / name)
    ours = load_pipeline(folder, Recipe("cpu", dtype))
    wanted = {"default": getattr(torch, dtype), "vae": torch.float32}
    stock = ContinuingPipeline.from_pretrained(str(folder), dtype=wanted)
    assert ours.config.keys() == stock.config.keys()
    for part, network in networks(stock):
        found = getattr(ours, part)
        assert type(found) is type(network) and not found.training
        for kind in ("named_parameters", "named_buffers"):
            expected = dict(getattr(network, kind)())
            given = dict(getattr(found, kind)())
            assert given.keys() == expected.keys()
            for key, tensor in expected.items():
                assert given[key].dtype == tensor.dtype, key
                assert torch.equal(given[key], tensor), key


def test_the_text_encoders_tied_weights_are_one_tensor(load: Callable[..., Any]) -> None:
    encoder = load("wan-tiny").pipeline.text_encoder
    assert encoder.encoder.embed_tokens.weight is encoder.shared.weight


def test_parameters_that_diffusers_keeps_in_float32_are_in_float32(tiny_cache: Path) -> None:
    pipeline = load_pipeline(
        toy.build("wan-tiny", tiny_cache / "wan-tiny"), Recipe("cpu", "bfloat16")
    )
    kept = {
        name for name, one in pipeline.transformer.named_parameters() if one.dtype == torch.float32
    }
    assert "condition_embedder.time_embedder.linear_1.weight" in kept
    assert "blocks.0.scale_shift_table" in kept and "blocks.0.norm2.weight" in kept
    assert not any(".attn1.to_q" in name for name in kept)


def test_a_network_in_many_files_equals_that_in_one(folder: Path, load: Callable[..., Any]) -> None:
    for name in ("transformer", "transformer_2"):
        whole = WanTransformer3DModel.from_pretrained(folder / name)
        shutil.rmtree(folder / name)
        whole.save_pretrained(folder / name, max_shard_size="40KB")
        assert len(list((folder / name).glob("*.safetensors"))) > 2
    family = load_family(ROWS["wan-tiny"], folder, CPU)
    expected = load("wan-tiny").denoise(segment(), ignore)
    assert torch.equal(family.denoise(segment(), ignore), expected)


def held_bytes() -> int:
    """The bytes of all tensors in host memory."""
    gc.collect()
    found = (one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter))
    storages = (one.untyped_storage() for one in found if one.device.type == "cpu")
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())


@pytest.fixture(scope="module")
def sizes(trained: Path) -> dict[str, int]:
    """Bytes of each network in bfloat16, including the tables that it computes."""
    return {
        name: sum(one.nbytes for one in (*network.parameters(), *network.buffers()))
        for name, network in networks(load_pipeline(trained, Recipe("cpu", "bfloat16")))
    }


def held_while_loading(
    folder: Path, recipe: Recipe, patch: pytest.MonkeyPatch
) -> list[tuple[int, int]]:
    """Samples of (loaded bytes, bytes in host memory) during a load for a device that takes no
    memory. Few tensors are read ahead, because a few would be all of such a small network."""
    patch.setattr(loading, "_TOLD_EVERY_BYTES", 2_500_000)  # finding the tensors takes time
    patch.setattr(tensors, "_AHEAD", 2)
    before, held = held_bytes(), []
    pipeline = load_pipeline(
        folder, recipe, (), lambda done, _: held.append((done, held_bytes() - before))
    )
    assert pipeline.vae.device.type == "meta" and len(held) > 8
    return held


@pytest.mark.parametrize("converted", [False, True])
def test_host_memory_holds_a_few_blocks_where_the_device_holds_all_networks(
    trained: Path, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch, converted: bool
) -> None:
    held = held_while_loading(trained, Recipe("meta", "bfloat16", float8=converted), monkeypatch)
    entries = [tensors.entries(trained / name) for name in ("transformer", "transformer_2")]
    read = sum(entry.size_bytes for found in entries for entry in found.values())
    before = held[-1][0] - read  # in bytes of the files, which are float32
    assert max(count for done, count in held if done > before) < 0.5 * sizes["transformer_2"]
    assert max(count for _, count in held) < 1.2 * max(sizes["vae"], sizes["text_encoder"])
    assert held[-1][1] < 40_000  # the scheduler's tables


def test_host_memory_holds_what_the_recipe_keeps_there_and_a_few_blocks(
    trained: Path, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe("meta", "bfloat16", "stream", "moved")
    monkeypatch.setattr(placement, "stream_blocks", lambda *_: None)  # needs a real device
    held = held_while_loading(trained, recipe, monkeypatch)
    kept = sum(sizes[name] for name in ("transformer", "transformer_2", "text_encoder"))
    assert 0.9 * kept < held[-1][1] < 1.1 * kept
    assert max(count for _, count in held) < 1.2 * max(kept, sizes["text_encoder"] + sizes["vae"])


def test_the_bytes_are_reported_before_each_network_and_at_the_end(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    load_pipeline(folder, CPU, (), lambda done, of: told.append((done, of)))
    (whole,) = {of for _, of in told}
    done = [count for count, _ in told]
    assert done[0] == 0 and done[-1] == whole > 0
    assert done == sorted(done)
    assert len(set(done)) == 5  # four networks, and the end


def test_the_bytes_are_reported_within_a_large_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_TOLD_EVERY_BYTES", 20_000)
    told: list[int] = []
    load_family(ROWS["wan-tiny"], folder, CPU, (), lambda done, _: told.append(done))
    steps = [later - earlier for earlier, later in pairwise(told)]
    assert len(told) > 10 and max(steps) < 100_000


class Stopped(Exception):
    """What a cancelled job raises."""


@pytest.mark.parametrize("calls", [1, 2, 3, 6])
def test_an_exception_of_the_callback_ends_the_load_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    monkeypatch.setattr(loading, "_TOLD_EVERY_BYTES", 100_000)
    before, count = held_bytes(), 0

    def stop(_done: int, _of: int) -> None:
        nonlocal count
        count += 1
        if count == calls:
            raise Stopped

    with pytest.raises(Stopped) as caught:
        load_pipeline(folder, CPU, (), stop)
    assert count == calls
    assert held_bytes() <= before  # while the error and its frames are alive
    assert caught.value.__traceback__ is not None


def spoil(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path)


def test_missing_weights_are_a_sentence(folder: Path) -> None:
    spoil(folder / EXPERT, lambda state: state.pop("proj_out.bias"))
    with pytest.raises(ConfigurationError, match=r"transformer do not fit .*proj_out\.bias is m"):
        load_pipeline(folder, CPU)


def test_weights_of_another_shape_are_a_sentence(folder: Path) -> None:
    spoil(folder / EXPERT, lambda state: state.update({"proj_out.bias": torch.zeros(3)}))
    with pytest.raises(ConfigurationError, match=r"proj_out\.bias .* of another shape"):
        load_pipeline(folder, CPU)


def test_unused_weights_are_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    spoil(folder / EXPERT, lambda state: state.update({"extra.weight": torch.zeros(3)}))
    load_pipeline(folder, CPU)
    assert "transformer has unused weights: extra.weight" in caplog.text


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5])
def test_a_truncated_file_is_a_sentence(folder: Path, kept: float) -> None:
    path = folder / EXPERT
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    with pytest.raises(ConfigurationError, match=r"transformer/.*\.safetensors is damaged or cut"):
        load_pipeline(folder, CPU)


def test_a_pipeline_without_an_image_encoder_or_second_expert_loads(tiny_cache: Path) -> None:
    pipeline = load_pipeline(toy.build("wan-tiny-ti2v", tiny_cache / "wan-tiny-ti2v"), CPU)
    assert pipeline.transformer_2 is None and pipeline.image_encoder is None
    assert pipeline.config.expand_timesteps
