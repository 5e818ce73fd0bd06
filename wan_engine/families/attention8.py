"""Self-attention in 8 bits by cuDNN (package nvidia-cudnn-frontend): about a third of the time off
the part of a step that takes most of it.

Query and key as float8_e4m3fn with one scale each, the key without its mean over the tokens, which
softmax does not see; the value with a scale a channel, which the output is multiplied by.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch

from wan_engine.families.float8 import LARGEST

_TEST_TOKENS = 4096
_MOST_ERROR = 0.1  # of the norm; 0.05 is what rounding to 3 bits gives on random numbers
_PROBABILITY_SCALE = 256.0  # probabilities of 0..1 as float8


class Unsupported(Exception):
    """8-bit attention cannot be used here; says why."""


class Float8AttnProcessor:
    """For diffusers' `WanAttention` without an encoder: query, key and value of the same tokens."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """[1, n, width] to the same."""
        assert encoder_hidden_states is None and attention_mask is None, "self-attention only"
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            query, key = _rotated(query, *rotary_emb), _rotated(key, *rotary_emb)
        output = attention(query, key, value).flatten(2, 3)
        projected: torch.Tensor = attn.to_out[1](attn.to_out[0](output))
        return projected


def _rotated(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of pairs (0, 1), (2, 3), ... as diffusers' Wan processor has it."""
    first, second = states.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = cosines[..., 0::2], sines[..., 1::2]
    pairs = (first * cosine - second * sine, first * sine + second * cosine)
    return torch.stack(pairs, dim=-1).flatten(-2).type_as(states)


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(q k / sqrt(d)) v of [1, n, heads, d] in bfloat16, computed in float8."""
    key = key - key.mean(dim=1, keepdim=True)
    query8, query_scale = _one_scale(query)
    key8, key_scale = _one_scale(key)
    value_scale = value.abs().amax(dim=1, keepdim=True).float().div(LARGEST).clamp(min=1e-12)
    value8 = (value.float() / value_scale).to(torch.float8_e4m3fn)
    output = _attend(query8, key8, value8, query_scale, key_scale)
    scaled: torch.Tensor = output.float() * value_scale
    return scaled.to(query.dtype)


def _one_scale(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = states.abs().amax().float().div(LARGEST).clamp(min=1e-12)
    return (states.float() / scale).to(torch.float8_e4m3fn).contiguous(), scale.view(1, 1, 1, 1)


@torch.library.custom_op("wan_engine::attend_float8", mutates_args=())
def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_scale: torch.Tensor,
    key_scale: torch.Tensor,
) -> torch.Tensor:
    """float8 [1, n, heads, d] each, scales [1, 1, 1, 1] in float32; float8 of the same shape."""
    graph = _graph(tuple(query.shape), query.device)
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    one = torch.ones(1, 1, 1, 1, device=query.device)
    graph.run(query, key, value, query_scale, key_scale, one, output)
    return output


@_attend.register_fake
def _(query: torch.Tensor, key: Any, value: Any, query_scale: Any, key_scale: Any) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


class _Graph:
    """cuDNN's plan for one shape."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        import cudnn

        _, tokens, heads, width = shape
        self._cudnn, self._device = cudnn, device
        self._handle = cudnn.create_handle()
        kind = cudnn.data_type
        graph = self._graph = cudnn.pygraph(
            io_data_type=kind.FP8_E4M3,
            intermediate_data_type=kind.FLOAT,
            compute_data_type=kind.FLOAT,
            handle=self._handle,
        )
        sizes = [1, heads, tokens, width]
        strides = [tokens * heads * width, width, heads * width, 1]
        inputs = [
            graph.tensor(name=name, dim=sizes, stride=strides, data_type=kind.FP8_E4M3)
            for name in ("q", "k", "v")
        ]
        names = ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")
        ones = [1, 1, 1, 1]
        scales = [
            graph.tensor(name=name, dim=ones, stride=ones, data_type=kind.FLOAT) for name in names
        ]
        output, _, *largest = graph.sdpa_fp8(
            q=inputs[0],
            k=inputs[1],
            v=inputs[2],
            **dict(zip(names, scales, strict=True)),
            attn_scale=1 / math.sqrt(width),
            generate_stats=False,
        )
        output.set_output(True).set_dim(sizes).set_stride(strides).set_data_type(kind.FP8_E4M3)
        for tensor in largest:
            tensor.set_output(True).set_dim(ones).set_stride(ones).set_data_type(kind.FLOAT)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A])
        graph.check_support()
        graph.build_plans()
        self._tensors = (*inputs, *scales, output, *largest)
        self._workspace = torch.empty(
            max(1, graph.get_workspace_size()), device=device, dtype=torch.uint8
        )
        self._probability = torch.full((1, 1, 1, 1), _PROBABILITY_SCALE, device=device)
        self._largest = [torch.zeros(1, 1, 1, 1, device=device) for _ in largest]

    def run(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        query_scale: torch.Tensor,
        key_scale: torch.Tensor,
        one: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        stream = torch.cuda.current_stream(self._device).cuda_stream
        self._cudnn.set_stream(handle=self._handle, stream=stream)
        given = (
            *(states.transpose(1, 2) for states in (query, key, value)),
            query_scale,
            key_scale,
            one,
            1 / self._probability,
            self._probability,
            one,
            output.transpose(1, 2),
            *self._largest,
        )
        pack = dict(zip(self._tensors, given, strict=True))
        self._graph.execute(pack, self._workspace, handle=self._handle)


@cache
def _graph(shape: tuple[int, ...], device: torch.device) -> _Graph:
    return _Graph(shape, device)


def check(heads: int, width: int, device: torch.device) -> float:
    """The relative error against torch's attention on random numbers.

    Raises `Unsupported` where it is too large, or where cuDNN has no such kernel.
    """
    shape = (1, _TEST_TOKENS, heads, width)
    generator = torch.Generator(device).manual_seed(0)
    try:
        given = [
            torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
            for _ in range(3)
        ]
        output = attention(*given).float()
        query, key, value = (states.transpose(1, 2).float() for states in given)
        exact = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        error = float((output - exact).norm() / exact.norm())
    except Exception as error_raised:  # cuDNN's front end raises its own and RuntimeError
        raise Unsupported(f"{type(error_raised).__name__}: {error_raised}"[:300]) from error_raised
    if not error <= _MOST_ERROR:  # nor for NaN
        raise Unsupported(f"it is off by {error:.3f} of the norm, {_MOST_ERROR} is allowed")
    return error
