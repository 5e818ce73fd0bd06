"""Measures the error of 8-bit attention against exact attention, on numbers of several kinds.

On a machine without the kernel it is emulated: the same float8 numbers, probabilities and output
rounded as cuDNN does, sums in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.gpu_networks import Scale, device
from benchmarks.gpu_parts import Case, attempt
from wan_engine.families import attention8

_TOKENS = 2048  # of the emulation: probabilities are a matrix
_HEADS = 4


def errors(scale: Scale) -> Iterator[Case]:
    """The errors of bfloat16, and of 8 bits with and without balancing, as shares of the exact
    output's norm, for the head with the largest error. Exact is float32."""
    real = torch.cuda.is_available()
    heads = scale.heads if real else min(_HEADS, scale.heads)
    tokens = min(4096 if real else _TOKENS, max(64, scale.tokens))
    given = attention8.samples(heads, scale.head_width, device(), tokens)
    for kind, one in given.items():

        def work(one: Any = one) -> Case:
            with kernel():
                ours = attention8.error_of(*one)
                with _replaced("even", lambda query, key: (query, key)):
                    plain = attention8.error_of(*one)
            return {
                "bfloat16": _bfloat16_error(*one),
                "float8": ours,
                "float8_as_it_is": plain,
                "logits_std": _logits(*one),
                "kernel": "cuDNN" if real else "emulated",
            }

        yield attempt({"case": kind}, work)


def _bfloat16_error(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> float:
    attend = torch.nn.functional.scaled_dot_product_attention
    rounded, exact = (
        attend(*(states.transpose(1, 2).to(dtype) for states in (query, key, value))).float()
        for dtype in (torch.bfloat16, torch.float32)
    )
    return float(((rounded - exact).norm(dim=(2, 3)) / exact.norm(dim=(2, 3))).max())


def _logits(query: torch.Tensor, key: torch.Tensor, _value: torch.Tensor) -> float:
    """The standard deviation of the logits, for the head with the largest."""
    scores = torch.einsum("bqhd,bkhd->bhqk", query[:, :256].float(), key.float())
    return float((scores / math.sqrt(query.shape[-1])).std(dim=(2, 3)).max())


def emulate(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_scale: torch.Tensor,
    key_scale: torch.Tensor,
) -> torch.Tensor:
    """The kernel's computation from float8 [1, n, heads, d]. Probabilities, of which the largest of
    a row is 1, are multiplied by 256 and rounded to float8. The output is in float8."""
    scores = torch.einsum("bqhd,bkhd->bhqk", query.float() * query_scale, key.float() * key_scale)
    scores /= math.sqrt(query.shape[-1])
    weights = (scores - scores.amax(-1, keepdim=True)).exp_()
    rounded = (weights * 256).to(torch.float8_e4m3fn).float() / 256
    output = torch.einsum("bhqk,bkhd->bqhd", rounded / weights.sum(-1, keepdim=True), value.float())
    return output.to(torch.float8_e4m3fn)


@contextmanager
def kernel() -> Iterator[None]:
    """This machine's kernel, or its emulation if there is none."""
    if torch.cuda.is_available():
        yield
        return
    with _replaced("_attend", emulate):
        yield


@contextmanager
def _replaced(name: str, by: Any) -> Iterator[None]:
    before = getattr(attention8, name)
    setattr(attention8, name, by)
    try:
        yield
    finally:
        setattr(attention8, name, before)
