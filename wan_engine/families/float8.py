"""Matrices in float8_e4m3fn with a scale a row: half the memory of bfloat16, and on Ada, Hopper and
Blackwell up to twice its speed once the blocks are compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

LARGEST = 448.0
"""The largest number of float8_e4m3fn."""
_SMALLEST_SCALE = 1e-12  # a row of zeros


class Float8Linear(nn.Module):
    """`nn.Linear` whose weight is float8; each token's activations are scaled as they come.

    Plain tensors and torch's own `_scaled_mm`: they move, stream and compile like any others.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = to_float8(linear.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)  # [out, in]
        self.scale = nn.Parameter(scale, requires_grad=False)  # [out, 1], float32
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        rows = hidden.reshape(-1, self.in_features)
        values, scale = to_float8(rows)
        output = torch._scaled_mm(
            values,
            self.weight.t(),
            scale_a=scale,
            scale_b=self.scale.t(),
            bias=self.bias,
            out_dtype=hidden.dtype,
            use_fast_accum=True,
        )
        return output.reshape(*hidden.shape[:-1], self.out_features)


def to_float8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`rows` [n, m] as float8 and the scales [n, 1] that they are to be multiplied by."""
    scale = rows.abs().amax(dim=-1, keepdim=True).float().div(LARGEST).clamp(min=_SMALLEST_SCALE)
    return (rows.float() / scale).to(torch.float8_e4m3fn), scale


def replace_linears(module: nn.Module) -> None:
    """Every `nn.Linear` inside `module` in float8."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Float8Linear(child))
        else:
            replace_linears(child)


def convert_blocks(expert: Any, device: torch.device, *, stay: bool = False) -> None:
    """The matrices of the transformer's blocks; embeddings and the output stay as they are. Blocks
    `stay` on the device, or go back to where they were."""
    for block in expert.blocks:
        home = next(block.parameters()).device
        block.to(device)  # one at a time: both experts in bfloat16 may be too much for the device
        replace_linears(block)
        if not stay:
            block.to(home)
