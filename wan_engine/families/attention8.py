"""Computes self-attention in 8 bits with cuDNN (package nvidia-cudnn-frontend), which takes about a
third off the longest part of a step.

The kernel takes query and key as float8_e4m3fn with one scale each. Three steps balance the numbers
before they are rounded, and do not change the result of exact attention:

* subtract the mean of the key over the tokens, which softmax ignores;
* scale each channel of the query, and the same channel of the key by the inverse, so that both have
  the same size (SmoothQuant, arXiv 2211.10438, does this for a matrix);
* rotate both by a Hadamard matrix, which spreads a large channel over all channels (QuaRot, arXiv
  2404.00456).

The value has one scale per channel, which multiplies the output. The first two blocks and the last
two stay exact, because their errors pass through all other blocks, or directly into the picture.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

import torch

from wan_engine.families.float8 import LARGEST, Unsupported

_TEST_TOKENS = 4096
_MOST_ERROR = 0.1  # of the norm; rounding to 3 bits gives 0.06 with moderate logits
_MOST_ERROR_SHARP = 0.15  # for tokens that attend to a few others only
_PROBABILITY_SCALE = 256.0  # probabilities of 0..1 as float8
_SMALLEST = 1e-12
GRAPHS_KEPT = 8
"""Number of plans of cuDNN that are kept, one per size of the latest renders."""
EXACT_BLOCKS = 2
"""Number of exact blocks at each end."""


class Float8AttnProcessor:
    """An attention processor for diffusers' `WanAttention` without an encoder: query, key and value
    come from the same tokens."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """From [1, n, width] to [1, n, width]."""
        assert encoder_hidden_states is None and attention_mask is None, "self-attention only"
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            query, key = _rotated(query, *rotary_emb), _rotated(key, *rotary_emb)
        output = attention(query, key, value).flatten(2, 3)
        projected: torch.Tensor = attn.to_out[1](attn.to_out[0](output))
        return projected


def use_in(block: Any) -> None:
    """Use it for the self-attention of a block, of diffusers or of `wan_engine.networks`."""
    if hasattr(block, "self_attn"):
        block.self_attn.processor = attention
    else:
        block.attn1.processor = Float8AttnProcessor()


def _rotated(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of pairs (0, 1), (2, 3), ... as in diffusers' Wan processor."""
    first, second = states.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = cosines[..., 0::2], sines[..., 1::2]
    pairs = (first * cosine - second * sine, first * sine + second * cosine)
    return torch.stack(pairs, dim=-1).flatten(-2).type_as(states)


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(q k / sqrt(d)) v of [1, n, heads, d] in bfloat16, computed in float8."""
    query, key = even(query, key)
    query8, query_scale = _one_scale(query)
    key8, key_scale = _one_scale(key)
    value_scale = value.abs().amax(dim=1, keepdim=True).float().div(LARGEST).clamp(min=_SMALLEST)
    value8 = (value.float() / value_scale).to(torch.float8_e4m3fn).contiguous()
    output = _attend(query8, key8, value8, query_scale, key_scale)
    scaled: torch.Tensor = output.float() * value_scale
    return scaled.to(query.dtype)


def even(query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Balance query and key: their products stay the same, except for a part that softmax ignores,
    and no channel outweighs the others."""
    key = key - key.mean(dim=1, keepdim=True)
    sizes = [states.float().square().mean(dim=1, keepdim=True) for states in (query, key)]
    factor = (sizes[1] + _SMALLEST).div(sizes[0] + _SMALLEST).pow(0.25)  # of squares
    return _turned(query * factor, query.dtype), _turned(key / factor, key.dtype)


def _turned(states: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Multiply the channels of each head by an orthogonal matrix of plus and minus one number."""
    width = states.shape[-1]
    size = width & -width  # the largest power of two that divides it: 128 for Wan's 128
    parts = states.to(dtype).unflatten(-1, (-1, size))
    # The entries are exact in the dtype of tensor cores, and the scale is in float32.
    turned: torch.Tensor = (parts @ _hadamard(size, parts.device).to(parts)).float()
    return (turned / math.sqrt(size)).to(dtype).flatten(-2)


def _hadamard(size: int, device: torch.device) -> torch.Tensor:
    """Sylvester's Hadamard matrix, [size, size] of 1 and -1. `size` is a power of two."""
    index = torch.arange(size, device=device)
    common = index[:, None] & index[None, :]
    odd = torch.zeros_like(common)
    for bit in range(size.bit_length()):
        odd ^= (common >> bit) & 1
    return 1.0 - 2.0 * odd


def _one_scale(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = states.abs().amax().float().div(LARGEST).clamp(min=_SMALLEST)
    return (states.float() / scale).to(torch.float8_e4m3fn).contiguous(), scale.view(1, 1, 1, 1)


@torch.library.custom_op("wan_engine::attend_float8", mutates_args=())
def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_scale: torch.Tensor,
    key_scale: torch.Tensor,
) -> torch.Tensor:
    """Run the kernel on float8 [1, n, heads, d] each, with scales [1, 1, 1, 1] in float32. The
    output is float8 of the same shape."""
    # The plan has fixed strides. With other strides it would read the wrong memory.
    assert all(states.is_contiguous() for states in (query, key, value)), "strides are cuDNN's"
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
        weakref.finalize(self, cudnn.destroy_handle, self._handle)
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


@lru_cache(maxsize=GRAPHS_KEPT)
def _graph(shape: tuple[int, ...], device: torch.device) -> _Graph:
    return _Graph(shape, device)


@cache
def check(heads: int, width: int, device: torch.device) -> Mapping[str, float]:
    """Measure the relative error against torch's attention on random numbers, and on some kinds
    that models have: sharp logits, channels that outweigh others, heads of different sizes.

    Raises `Unsupported` if an error is too large or cuDNN has no such kernel. Runs once per
    process.
    """
    errors = {}
    for kind, given in samples(heads, width, device).items():
        try:
            errors[kind] = error_of(*given)
        except Exception as error:  # cuDNN's front end raises its own errors and RuntimeError
            raise Unsupported(f"{type(error).__name__}: {error}"[:300]) from error
        most = _MOST_ERROR_SHARP if kind == "sharp" else _MOST_ERROR
        if not errors[kind] <= most:  # also false for NaN
            raise Unsupported(
                f"{kind}: the error is {errors[kind]:.3f} of the norm, {most} is allowed"
            )
    return errors


def error_of(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> float:
    """The error of `attention` as a share of the exact output's norm, for the head with the largest
    error."""
    output = attention(query, key, value).float()
    first, second, third = (one.transpose(1, 2).float() for one in (query, key, value))
    exact = torch.nn.functional.scaled_dot_product_attention(first, second, third).transpose(1, 2)
    return float(((output - exact).norm(dim=(1, 3)) / exact.norm(dim=(1, 3))).max())


def samples(
    heads: int, width: int, device: torch.device, tokens: int = 0
) -> Mapping[str, tuple[torch.Tensor, ...]]:
    """Query, key and value [1, n, heads, width] in bfloat16, for each kind of numbers that is
    tested."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, tokens or _TEST_TOKENS, heads, width)

    def made(query: Any = 1.0, key: Any = 1.0) -> tuple[torch.Tensor, ...]:
        found = [torch.randn(shape, generator=generator, device=device) for _ in range(3)]
        return (found[0] * query).bfloat16(), (found[1] * key).bfloat16(), found[2].bfloat16()

    channel = torch.ones(width, device=device)
    both, one = channel.clone(), channel.clone()
    both[1], one[2] = 4.0, 20.0
    sizes = torch.logspace(-1.5, 0.1, heads, device=device)[:, None]
    return {
        "Gaussian": made(),
        "sharp": made(2.5, 2.5),
        "outliers in both": made(both, both),
        "outliers in the key": made(key=one),
        "uneven heads": made(sizes, sizes),
        "query and key uneven": made(sizes, 1 / sizes),
    }
