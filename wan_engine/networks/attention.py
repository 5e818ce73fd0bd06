"""Attention with the authors' weight names, through the backends of diffusers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn

Rotary = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of each token and pair of channels, float32 [1, n, 1, d / 2]."""


class Backend:
    """Computes softmax(q k / sqrt(d)) v with the backend that `ModelMixin.set_attention_backend`
    names."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Takes and returns [b, n, heads, d]."""
        output: torch.Tensor = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend
        )
        return output


class Attention(nn.Module, AttentionModuleMixin):
    """Self-attention, or attention to a context. `processor` computes it."""

    _default_processor_cls = Backend
    _available_processors = [Backend]  # noqa: RUF012  # the type in diffusers
    _supports_qkv_fusion = False
    processor: Any
    norm_q: nn.RMSNorm
    norm_k: nn.RMSNorm

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = (nn.RMSNorm(dim, eps=eps) for _ in range(2))
        self.processor = Backend()

    def forward(
        self,
        hidden: torch.Tensor,
        context: torch.Tensor | None = None,
        rotary: Rotary | None = None,
    ) -> torch.Tensor:
        """Takes and returns `hidden` [b, n, dim]. `context` is [b, m, dim]."""
        seen = hidden if context is None else context
        query = self.norm_q(self.q(hidden)).unflatten(2, (self.heads, -1))
        key = self.norm_k(self.k(seen)).unflatten(2, (self.heads, -1))
        value = self.v(seen).unflatten(2, (self.heads, -1))
        if rotary is not None:
            query, key = rotated(query, rotary), rotated(key, rotary)
        output = self.processor(query, key, value)
        projected: torch.Tensor = self.o(output.flatten(2).type_as(hidden))
        return projected


def rotated(states: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Rotate the channel pairs (0, 1), (2, 3), ... of [b, n, heads, d], in float32."""
    cosines, sines = rotary
    first, second = states.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = first * cosines - second * sines, first * sines + second * cosines
    return torch.stack(turned, dim=-1).flatten(-2).type_as(states)
