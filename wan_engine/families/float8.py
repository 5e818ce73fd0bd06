"""Stores weight matrices in float8_e4m3fn with one scale per row: half the memory of bfloat16, and
up to twice its speed on Ada, Hopper and Blackwell once the blocks are compiled."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

LARGEST = 448.0
"""The largest number of float8_e4m3fn."""
_MOST_ERROR = 0.1  # of a row's or column's norm; rounding to 3 bits gives at most 0.06
_SMALLEST_SCALE = 1e-12  # for a row of zeros


class Unsupported(Exception):
    """Raised when 8 bits cannot be used here. The text says why."""


@cache
def check(device: torch.device) -> float:
    """Measure the relative error of a float8 product against float32, with rows and columns whose
    sizes differ by a factor of a thousand. Raises `Unsupported` if it is too large, or if torch has
    no such product for this device. Runs once per process."""
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
        except Exception as error:  # torch raises RuntimeError and its own errors
            raise Unsupported(f"{type(error).__name__}: {error}"[:300]) from error
    # Per row and column, so that large ones do not hide the error of a small one.
    off = [(found - expected).norm(dim=axis) / expected.norm(dim=axis) for axis in (0, 1)]
    worst = float(torch.cat(off).max())
    if not worst <= _MOST_ERROR:  # also false for NaN
        raise Unsupported(f"the error is {worst:.3f} of the norm, {_MOST_ERROR} is allowed")
    return worst


class Float8Linear(nn.Module):
    """`nn.Linear` with a float8 weight. The activations of each token are scaled on the fly.

    It uses plain tensors and torch's own `_scaled_mm`, so its tensors move, stream and compile like
    any others.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = to_float8(linear.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)  # [out, in]
        self.scale = nn.Parameter(scale, requires_grad=False)  # [out, 1], float32
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """From [..., in] to [..., out]."""
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
    """`rows` [n, m] as float8, and the scales [n, 1] to multiply them by."""
    scale = rows.abs().amax(dim=-1, keepdim=True).float().div(LARGEST).clamp(min=_SMALLEST_SCALE)
    return (rows.float() / scale).to(torch.float8_e4m3fn), scale


def scale_of(name: str) -> str:
    """The name of the scale of a matrix."""
    return name.removesuffix("weight") + "scale"


def widen(state: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Multiply the matrices of `state` by their scales, and remove the scales."""
    for name in [name for name in state if name.endswith(".scale")]:
        scale = state.pop(name)
        weight = name.removesuffix("scale") + "weight"
        state[weight] = (state[weight].float() * scale).to(dtype)


def is_float8(block: nn.Module) -> bool:
    """Whether the matrices of a block are in float8 already, as in a prepared set."""
    return any(isinstance(module, Float8Linear) for module in block.modules())


def replace_linears(module: nn.Module) -> None:
    """Replace every `nn.Linear` inside `module` by its float8 form."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Float8Linear(child))
        else:
            replace_linears(child)


def convert_blocks(expert: Any, device: torch.device, *, stay: bool = False) -> None:
    """Convert the matrices of the transformer's blocks. Embeddings and the output stay as they are.
    If `stay`, blocks stay on the device; otherwise they go back."""
    for block in expert.blocks:
        convert_block(block, device, stay=stay)


def convert_block(block: Any, device: torch.device, *, stay: bool) -> None:
    """Convert one block on the device, which may be too small for both experts in bfloat16."""
    home = next(block.parameters()).device
    block.to(device)
    replace_linears(block)
    if not stay:
        block.to(home)
