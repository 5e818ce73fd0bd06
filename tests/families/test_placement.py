"""Recipes applied to a real tiny pipeline on the CPU: what of them a CPU can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from tests.families.test_i2v import ignore, segment
from wan_engine.families import attention8
from wan_engine.families.float8 import Float8Linear
from wan_engine.families.placement import experts, set_attention
from wan_engine.runtime.recipes import Recipe

CPU = Recipe("cpu", "float32")


@pytest.fixture(autouse=True)
def attention_as_it_was() -> Iterator[None]:
    """diffusers keeps the last backend for the whole process."""
    before, _ = _AttentionBackendRegistry.get_active_backend()
    yield
    _AttentionBackendRegistry.set_active_backend(before)


def counted(expert: Any) -> list[int]:
    """How often each block of an expert runs, one number a block."""
    counts = [0] * len(expert.blocks)
    for index, block in enumerate(expert.blocks):

        def count(_module: Any, _inputs: Any, index: int = index) -> None:
            counts[index] += 1

        block.ffn.register_forward_pre_hook(count)
    return counts


@pytest.mark.parametrize("threshold", [None, 0.9])
def test_a_step_cache_leaves_out_all_but_the_first_block(
    load: Callable[..., Any], threshold: float | None
) -> None:
    recipe = replace(CPU, step_cache=threshold)
    family = load("wan-tiny", (), recipe, steps=12, sampler="unipc")
    counts = [counted(expert) for expert in experts(family.pipeline)]
    family.denoise(segment(), ignore)
    for first, *others in counts:
        assert first > 1
        assert all((each < first) == (threshold is not None) for each in others)


def test_a_step_cache_forgets_one_job_before_the_next(load: Callable[..., Any]) -> None:
    family = load("wan-tiny", (), replace(CPU, step_cache=0.9), steps=12, sampler="unipc")
    first = family.denoise(segment(), ignore)
    family.denoise(segment(seed=6), ignore)
    assert torch.equal(family.denoise(segment(), ignore), first)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # inductor's own
def test_compiled_blocks_give_the_same_clip(load: Callable[..., Any]) -> None:
    plain, compiled = load("wan-tiny"), load("wan-tiny", (), replace(CPU, compiled=True))
    given = plain.denoise(segment(), ignore), compiled.denoise(segment(), ignore)
    first, second = (np.concatenate(list(plain.decode(latents))).astype(int) for latents in given)
    assert np.abs(first - second).max() <= 2
    assert compiled.pipeline.transformer.blocks[0]._compiled_call_impl is not None


def test_a_last_decode_in_bfloat16_leaves_the_encoder_alone(load: Callable[..., Any]) -> None:
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


def test_attention_in_8_bits_is_not_used_where_its_test_fails(
    load: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    family = load("wan-tiny")
    for expert in experts(family.pipeline):
        set_attention(expert, "float8", torch.device("cpu"))
        for block in expert.blocks:
            assert not isinstance(block.attn1.processor, attention8.Float8AttnProcessor)
            assert block.attn1.processor._attention_backend == AttentionBackendName._NATIVE_CUDNN
    assert "8-bit attention is not used" in caplog.text


def exact(query: Any, key: Any, value: Any, query_scale: Any, key_scale: Any) -> Any:
    """What cuDNN computes, on the CPU: float8 in, float8 out."""
    given = (query.float() * query_scale, key.float() * key_scale, value.float())
    heads = (states.transpose(1, 2) for states in given)
    output = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2)
    return output.to(torch.float8_e4m3fn)


def test_attention_in_8_bits_passes_its_test_where_the_kernel_is_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention8, "_TEST_TOKENS", 256)
    monkeypatch.setattr(attention8, "_attend", exact)
    error = attention8.check(4, 32, torch.device("cpu"))
    assert 0 < error < 0.08


@pytest.mark.parametrize("wrong", ["noise", "nan"])
def test_attention_in_8_bits_fails_its_test_where_the_kernel_is_wrong(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attend(query: Any, *given: Any) -> Any:
        output = exact(query, *given).float()
        noise = torch.randn_like(output) * output.std()
        spoiled = output + noise if wrong == "noise" else output * float("nan")
        return spoiled.to(torch.float8_e4m3fn)

    monkeypatch.setattr(attention8, "_TEST_TOKENS", 256)
    monkeypatch.setattr(attention8, "_attend", attend)
    with pytest.raises(attention8.Unsupported, match="of the norm"):
        attention8.check(4, 32, torch.device("cpu"))


def test_the_8_bit_processor_is_wans_own_but_for_rounding(
    load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention8, "_attend", exact)
    expert = load("wan-tiny").pipeline.transformer
    attn = expert.blocks[0].attn1
    hidden = torch.randn(1, 3 * 4 * 4, attn.to_q.in_features)
    rotary = expert.rope(torch.empty(1, 16, 3, 8, 8))
    with torch.inference_mode():
        expected = attn(hidden, None, None, rotary)
        found = attention8.Float8AttnProcessor()(attn, hidden, None, None, rotary)
    assert (found - expected).norm() / expected.norm() < 0.1


def test_float8_matrices_are_in_a_loaded_model(load: Callable[..., Any]) -> None:
    family = load("wan-tiny", (), Recipe("cpu", "bfloat16"))
    plain = family.denoise(segment(), ignore)
    from wan_engine.families.float8 import convert_blocks

    for expert in experts(family.pipeline):
        convert_blocks(expert, torch.device("cpu"))
        assert any(isinstance(module, Float8Linear) for module in expert.modules())
    close = family.denoise(segment(), ignore)
    assert not torch.equal(close, plain)
    assert (close.float() - plain.float()).norm() / plain.float().norm() < 0.2
