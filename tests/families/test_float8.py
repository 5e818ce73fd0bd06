"""Matrices in float8: how close they are to the originals, and what is left unchanged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from wan_engine.families import float8
from wan_engine.families.float8 import LARGEST, Float8Linear, convert_blocks, to_float8
from wan_engine.families.placement import able
from wan_engine.runtime.recipes import Recipe

ROUNDING = 2**-4  # half a step of a three-bit mantissa


def linear(inner: int = 64, outer: int = 48, *, bias: bool = True, seed: int = 1) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inner, outer, bias=bias).to(torch.bfloat16)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(32, 64), (1, 5, 64), (2, 3, 4, 64)])
def test_a_matrix_gives_the_same_result_up_to_rounding(shape: tuple[int, ...], bias: bool) -> None:
    plain = linear(bias=bias)
    hidden = torch.randn(shape, dtype=torch.bfloat16)
    output = Float8Linear(plain)(hidden)
    expected = plain.float()(hidden.float())
    assert output.shape == expected.shape and output.dtype == torch.bfloat16
    assert (output.float() - expected).norm() / expected.norm() < ROUNDING


def test_a_large_row_does_not_cost_a_small_one_its_precision() -> None:
    plain = linear()
    hidden = torch.randn(4, 64, dtype=torch.bfloat16)
    hidden[0] *= 1000
    small = Float8Linear(plain)(hidden)[1:]
    alone = Float8Linear(plain)(hidden[1:])
    assert torch.equal(small, alone)


def test_rows_use_the_whole_range_and_nothing_overflows() -> None:
    rows = torch.tensor([[1e-4, -3e-4], [5e4, 700.0], [0.0, 0.0]], dtype=torch.bfloat16)
    values, scale = to_float8(rows)
    assert values.float().abs().amax(dim=-1).tolist() == [LARGEST, LARGEST, 0.0]
    restored = values.float() * scale
    assert torch.allclose(restored, rows.float(), rtol=ROUNDING, atol=1e-6)


def test_only_the_matrices_of_blocks_become_float8(load: Callable[..., Any]) -> None:
    expert = copy.deepcopy(load("wan-tiny").pipeline.transformer).to(torch.bfloat16)
    before = sum(parameter.nbytes for parameter in expert.blocks.parameters())
    convert_blocks(expert, torch.device("cpu"))
    linears = [name for name, module in expert.named_modules() if isinstance(module, nn.Linear)]
    assert linears and not any(name.startswith("blocks.") for name in linears)
    kinds = {module for module in expert.blocks.modules() if isinstance(module, Float8Linear)}
    assert len(kinds) == 10 * len(expert.blocks)  # q, k, v and out twice, and two of the FFN
    assert sum(parameter.nbytes for parameter in expert.blocks.parameters()) < 0.7 * before
    assert expert.dtype == torch.bfloat16  # the pipeline casts inputs to this dtype


def test_a_model_in_float8_makes_nearly_the_same_clip(load: Callable[..., Any]) -> None:
    expert = copy.deepcopy(load("wan-tiny").pipeline.transformer).to(torch.bfloat16)
    given = {
        "hidden_states": torch.randn(1, 36, 3, 8, 8, dtype=torch.bfloat16),
        "timestep": torch.tensor([937.0]),
        "encoder_hidden_states": torch.randn(1, 512, 32, dtype=torch.bfloat16),
        "return_dict": False,
    }
    with torch.inference_mode():
        expected = expert(**given)[0].float()
        convert_blocks(expert, torch.device("cpu"))
        found = expert(**given)[0].float()
    assert (found - expected).norm() / expected.norm() < 2 * ROUNDING


def test_the_test_of_float8_passes_where_torch_computes_correctly() -> None:
    float8.check.cache_clear()
    assert 0.01 < float8.check(torch.device("cpu")) < 0.08


def spoiled(how: str) -> Callable[..., Any]:
    right = torch._scaled_mm

    def product(*given: Any, **named: Any) -> Any:
        if how == "error":
            raise RuntimeError("CUDA error: no kernel image is available")
        output = right(*given, **named)
        if how == "small rows":
            output[:16] = 0  # a thousandth of the others, so a norm over all would not show it
        return output * float("nan") if how == "nan" else output

    return product


@pytest.mark.parametrize("how", ["error", "nan", "small rows"])
def test_float8_is_not_used_where_its_test_fails(
    how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    float8.check.cache_clear()
    monkeypatch.setattr(torch, "_scaled_mm", spoiled(how))
    recipe = Recipe("meta", "bfloat16", float8=True)
    with pytest.raises(float8.Unsupported):
        float8.check(torch.device("cpu"))
    check = float8.check
    monkeypatch.setattr(float8, "check", lambda _device: check(torch.device("cpu")))
    assert able(recipe, {}) == Recipe("meta", "bfloat16")
    assert "float8 matrices are not used, blocks are bfloat16" in caplog.text
    check.cache_clear()


def test_a_recipe_without_float8_is_not_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8, "check", lambda _device: pytest.fail("it was tested"))
    assert able(Recipe("cpu", "float32"), {}) == Recipe("cpu", "float32")
