"""Stores weight matrices in float8_e4m3fn with one scale per row: half the memory of bfloat16, and
up to twice its speed on Ada, Hopper and Blackwell once the blocks are compiled."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

LARGEST = 448.0
"""The largest number of float8_e4m3fn."""
_MOST_ERROR = 0.1  # of a row's or column's norm; rounding to 3 bits gives 0.06 at worst
_SMALLEST_SCALE = 1e-12  # a row of zeros


class Unsupported(Exception):
    """Something in 8 bits cannot be used here; says why."""


@cache
def check(device: torch.device) -> float:
    """The relative error of a product in float8 against one in float32, of rows and columns whose
    sizes differ by a thousand. Raises `Unsupported` where it is too large, or where torch has no
    such product for this device. Once a process."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(1024, 512, dtype=torch.bfloat16)
    hidden = torch.randn(256, 1024, generator=generator, dtype=torch.bfloat16)
    with torch.inference_mode():
        linear.weight.normal_(generator=generator).mul_(torch.logspace(-3, 0, 512)[:, None])
        linear.bias.normal_(generator=generator)
        hidden.mul_(torch.logspace(-3, 0, 256)[:, None])
        expected = nn.functional.linear(hidden.float(), linear.weight.float(), linear.bias.float())
        try:
            found = Float8Linear(linear.to(device))(hidden.to(device)).float().cpu()
        except Exception as error:  # torch raises RuntimeError, and others of its own
            raise Unsupported(f"{type(error).__name__}: {error}"[:300]) from error
    # By rows and columns: what is wrong with a small one is not hidden by a large one.
    off = [(found - expected).norm(dim=axis) / expected.norm(dim=axis) for axis in (0, 1)]
    worst = float(torch.cat(off).max())
    if not worst <= _MOST_ERROR:  # nor for NaN
        raise Unsupported(f"it is off by {worst:.3f} of the norm, {_MOST_ERROR} is allowed")
    return worst


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


def scale_of(name: str) -> str:
    """The name of the scale that belongs to a matrix of this name."""
    return name.removesuffix("weight") + "scale"


def widen(state: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Make the matrices of `state` that have a scale what they stand for; the scales go."""
    for name in [name for name in state if name.endswith(".scale")]:
        scale = state.pop(name)
        weight = name.removesuffix("scale") + "weight"
        state[weight] = (state[weight].float() * scale).to(dtype)


def is_float8(block: nn.Module) -> bool:
    """Whether the matrices of a block are in float8 already, as in a ready set."""
    return any(isinstance(module, Float8Linear) for module in block.modules())


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
        convert_block(block, device, stay=stay)


def convert_block(block: Any, device: torch.device, *, stay: bool) -> None:
    """One block, on the device: both experts in bfloat16 may be too much for it."""
    home = next(block.parameters()).device
    block.to(device)
    replace_linears(block)
    if not stay:
        block.to(home)
