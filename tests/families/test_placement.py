"""Recipes applied to a real tiny pipeline on the CPU, as far as a CPU supports them."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from tests.families.test_i2v import ignore, segment
from wan_engine.families import attention8, float8, placement
from wan_engine.families.float8 import Float8Linear
from wan_engine.families.placement import able, attention_of, experts, set_attention
from wan_engine.runtime.recipes import Recipe

CPU = Recipe("cpu", "float32")


@pytest.fixture(autouse=True)
def attention_as_it_was() -> Iterator[None]:
    """diffusers keeps the last attention backend for the whole process."""
    before, _ = _AttentionBackendRegistry.get_active_backend()
    yield
    _AttentionBackendRegistry.set_active_backend(before)


def counted(expert: Any) -> list[int]:
    """The number of runs of each block of an expert."""
    counts = [0] * len(expert.blocks)
    for index, block in enumerate(expert.blocks):

        def count(_module: Any, _inputs: Any, index: int = index) -> None:
            counts[index] += 1

        block.ffn.register_forward_pre_hook(count)
    return counts


@pytest.mark.parametrize("threshold", [None, 0.9])
def test_a_step_cache_skips_all_blocks_but_the_first(
    load: Callable[..., Any], threshold: float | None
) -> None:
    recipe = replace(CPU, step_cache=threshold)
    family = load("wan-tiny", (), recipe, steps=12, sampler="unipc")
    counts = [counted(expert) for expert in experts(family.pipeline)]
    family.denoise(segment(), ignore)
    for first, *others in counts:
        assert first > 1
        assert all((each < first) == (threshold is not None) for each in others)


def test_a_step_cache_is_reset_between_jobs(load: Callable[..., Any]) -> None:
    family = load("wan-tiny", (), replace(CPU, step_cache=0.9), steps=12, sampler="unipc")
    first = family.denoise(segment(), ignore)
    family.denoise(segment(seed=6), ignore)
    assert torch.equal(family.denoise(segment(), ignore), first)


@pytest.mark.system
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # inductor uses it
def test_compiled_blocks_give_the_same_clip(load: Callable[..., Any]) -> None:
    plain, compiled = load("wan-tiny"), load("wan-tiny", (), replace(CPU, compiled=True))
    given = plain.denoise(segment(), ignore), compiled.denoise(segment(), ignore)
    first, second = (np.concatenate(list(plain.decode(latents))).astype(int) for latents in given)
    assert np.abs(first - second).max() <= 2
    assert compiled.pipeline.transformer.blocks[0]._compiled_call_impl is not None


def test_a_last_decode_in_bfloat16_does_not_change_the_encoder(load: Callable[..., Any]) -> None:
    family = load("wan-tiny", (), replace(CPU, decode_dtype="bfloat16"))
    latents = family.denoise(segment(), ignore)
    used: list[torch.dtype] = []
    for vae in (family.pipeline.vae, family._decoder):
        vae.decoder.register_forward_pre_hook(lambda _m, given: used.append(given[0].dtype))
    last = np.concatenate(list(family.decode(latents))).astype(int)
    assert set(used) == {torch.bfloat16}
    used.clear()
    again = np.concatenate(list(family.decode(latents, continued=True))).astype(int)
    assert set(used) == {torch.float32}  # the next segment encodes these frames
    assert np.abs(last - again).mean() < 2
    assert family.pipeline.vae.encoder is not None
    assert family._decoder.encoder is None


@pytest.fixture
def untested() -> Iterator[None]:
    """Each test checks the kernel as if for the first time."""
    attention8.check.cache_clear()
    yield
    attention8.check.cache_clear()


@pytest.mark.usefixtures("untested")
def test_attention_in_8_bits_is_off_where_its_test_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    expert = {"num_attention_heads": 2, "attention_head_dim": 16}
    asked = Recipe("cpu", "bfloat16", attention="float8")
    assert able(asked, expert) == replace(asked, attention="_native_cudnn")  # cuDNN is missing
    assert "attention in 8 bits is not used: " in caplog.text


def kernel(query: Any, key: Any, value: Any, query_scale: Any, key_scale: Any) -> Any:
    """The computation of cuDNN on the CPU: inputs, probabilities and output in float8."""
    scores = torch.einsum(
        "bqhd,bkhd->bhqk", query.float() * query_scale, key.float() * key_scale
    ) / math.sqrt(query.shape[-1])
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    rounded = (weights * 256).to(torch.float8_e4m3fn).float() / 256
    output = torch.einsum("bhqk,bkhd->bqhd", rounded / weights.sum(-1, keepdim=True), value.float())
    return output.to(torch.float8_e4m3fn)


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, untested: None) -> None:
    monkeypatch.setattr(attention8, "_TEST_TOKENS", 256)
    monkeypatch.setattr(attention8, "_attend", kernel)


@pytest.mark.usefixtures("emulated")
def test_attention_in_8_bits_passes_its_test_where_the_kernel_is_right(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors = attention8.check(4, 32, torch.device("cpu"))
    assert len(errors) == 6
    assert all(0.02 < error < 0.09 for kind, error in errors.items() if kind != "sharp")
    recipe = Recipe("cpu", "bfloat16", attention="float8")
    with caplog.at_level("INFO"):
        assert able(recipe, {"num_attention_heads": 4, "attention_head_dim": 32}) == recipe
    assert "these errors, as shares of the norm: Gaussian 0.0" in caplog.text


@pytest.mark.usefixtures("emulated")
def test_channels_are_balanced_before_they_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    given = attention8.samples(2, 128, torch.device("cpu"), 512)
    ours = {kind: attention8.error_of(*one) for kind, one in given.items()}
    for query, key, _ in given.values():
        made = attention8.even(query, key)
        products, before = (
            torch.einsum("bqhd,bkhd->bhqk", *(states.double() for states in pair))
            for pair in (made, (query, key - key.mean(1, keepdim=True)))
        )
        assert (products - before).norm() / before.norm() < 0.01  # bfloat16
    monkeypatch.setattr(attention8, "even", lambda query, key: (query, key))
    plain = {kind: attention8.error_of(*one) for kind, one in given.items()}
    assert plain["outliers in both"] > 2 * ours["outliers in both"]
    assert plain["outliers in the key"] > 2 * ours["outliers in the key"]
    assert all(ours[kind] < 1.1 * plain[kind] for kind in given)


def test_channels_are_balanced_in_one_graph_for_all_sizes() -> None:
    made = torch.compile(attention8.even, backend="eager", fullgraph=True, dynamic=True)
    for tokens in (48, 64):
        query, key, _ = attention8.samples(2, 128, torch.device("cpu"), tokens)["uneven heads"]
        for found, expected in zip(made(query, key), attention8.even(query, key), strict=True):
            assert torch.equal(found, expected)
    torch.compiler.reset()


@pytest.mark.parametrize("wrong", ["noise", "nan", "one head", "error"])
@pytest.mark.usefixtures("emulated")
def test_attention_in_8_bits_fails_its_test_where_the_kernel_is_wrong(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attend(query: Any, *given: Any) -> Any:
        if wrong == "error":
            raise RuntimeError("No valid engine configs")
        output = kernel(query, *given).float()
        if wrong == "one head":
            output[:, :, 0] = 0
        noise = torch.randn_like(output) * output.std() * (wrong == "noise")
        return (output * (float("nan") if wrong == "nan" else 1) + noise).to(torch.float8_e4m3fn)

    monkeypatch.setattr(attention8, "_attend", attend)
    with pytest.raises(float8.Unsupported, match=r"of the norm|No valid engine"):
        attention8.check(8, 32, torch.device("cpu"))


def test_the_first_and_last_blocks_have_exact_attention() -> None:
    expert = network_of(blocks=6)
    set_attention(expert, "float8")
    kinds = [isinstance(b.attn1.processor, attention8.Float8AttnProcessor) for b in expert.blocks]
    assert kinds == [False, False, True, True, False, False]
    for block in expert.blocks:
        assert block.attn2.processor._attention_backend == AttentionBackendName._NATIVE_CUDNN
    recipe = Recipe("cpu", "bfloat16", attention="float8")
    assert (
        attention_of(recipe, 6) == "cuDNN in 8 bits in 2 of 6 blocks, exact in the first and last 2"
    )
    assert attention_of(replace(recipe, attention="_native_cudnn"), 6) == "native_cudnn"


def network_of(blocks: int) -> Any:
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=blocks,
        rope_max_seq_len=32,
    )


def test_inputs_with_another_layout_than_the_kernels_plan_are_refused() -> None:
    states = torch.zeros(1, 4, 2, 16, dtype=torch.float8_e4m3fn)
    turned = states.transpose(1, 2).contiguous().transpose(1, 2)
    scale = torch.ones(1, 1, 1, 1)
    with pytest.raises(AssertionError, match="strides"):
        attention8._attend(turned, states, states, scale, scale)


def test_plans_of_cudnn_that_are_dropped_release_their_handles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cudnn = MagicMock()  # it makes no handle without a GPU
    graph = cudnn.pygraph.return_value
    graph.sdpa_fp8.return_value = (MagicMock(), None)
    graph.get_workspace_size.return_value = 1
    handles = iter(range(100))
    cudnn.create_handle.side_effect = lambda: next(handles)
    monkeypatch.setitem(sys.modules, "cudnn", cudnn)
    attention8._graph.cache_clear()
    for tokens in range(attention8.GRAPHS_KEPT + 2):
        attention8._graph((1, tokens + 1, 2, 16), torch.device("cpu"))
    gc.collect()
    assert [call.args for call in cudnn.destroy_handle.call_args_list] == [(0,), (1,)]
    attention8._graph.cache_clear()


def test_the_8_bit_processor_equals_wans_own_up_to_rounding(
    load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention8, "_attend", kernel)
    expert = load("wan-tiny").pipeline.transformer
    attn = expert.blocks[0].attn1
    hidden = torch.randn(1, 3 * 4 * 4, attn.to_q.in_features)
    rotary = expert.rope(torch.empty(1, 16, 3, 8, 8))
    with torch.inference_mode():
        expected = attn(hidden, None, None, rotary)
        found = attention8.Float8AttnProcessor()(attn, hidden, None, None, rotary)
    assert (found - expected).norm() / expected.norm() < 0.1


def test_a_loaded_model_has_float8_matrices(load: Callable[..., Any]) -> None:
    family = load("wan-tiny", (), Recipe("cpu", "bfloat16"))
    plain = family.denoise(segment(), ignore)
    from wan_engine.families.float8 import convert_blocks

    for expert in experts(family.pipeline):
        convert_blocks(expert, torch.device("cpu"))
        assert any(isinstance(module, Float8Linear) for module in expert.modules())
    close = family.denoise(segment(), ignore)
    assert not torch.equal(close, plain)
    assert (close.float() - plain.float()).norm() / plain.float().norm() < 0.2


class Recorded:
    """An expert that records how its blocks are moved."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}

    def enable_group_offload(self, **told: Any) -> None:
        self.told = told


def test_blocks_are_not_moved_away_before_they_have_run() -> None:
    expert = Recorded()
    placement.stream_blocks(expert, torch.device("cuda"))
    # With `record_stream`, diffusers 0.42.1 does not wait, and the CPU copies many blocks ahead.
    assert expert.told["use_stream"] is True and expert.told["record_stream"] is False


@pytest.mark.parametrize("fails", [False, True])
def test_only_the_embedding_of_times_uses_tf32(fails: bool) -> None:
    matmul = torch.backends.cuda.matmul
    before, inside = matmul.allow_tf32, []
    embedder = network_of(blocks=1).condition_embedder.time_embedder
    embedder.linear_1.register_forward_pre_hook(lambda *_: inside.append(matmul.allow_tf32))
    placement.embed_times_in_tf32(embedder)
    given = torch.zeros(2, 3 if fails else 32)
    with pytest.raises(RuntimeError) if fails else nullcontext():
        embedder(given)
    assert inside == [True] and before is False
    assert matmul.allow_tf32 is before
