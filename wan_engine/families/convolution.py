"""Runs the VAE's convolutions through oneDNN on a CPU, whatever their size.

torch (2.13) uses oneDNN if batch * channels * frames * rows exceeds 20480. The rule was made for
pictures, where the fourth number is columns. It runs smaller convolutions through `slow_conv3d`,
which first writes every pixel once for each weight of the kernel. In the decoder of `wan-tiny` at
full size, all but the first are smaller: 70 ms instead of 10 on one core, and 110 MiB of copies.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

_SMALLEST_KERNEL = 27  # weights; for kernels below 3 x 3 x 3, both are equally fast


def use_onednn(vae: Any) -> None:
    """Make oneDNN compute the 3D convolutions of `vae`, in float32 on the CPU. Results differ from
    the stock ones in the last bits. Does nothing if torch was built without oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d) and module.weight[0, 0].numel() >= _SMALLEST_KERNEL:
            given = (module.padding, module.stride, module.dilation, module.groups)
            # `Conv3d.forward` calls it. Causal padding, hooks and weights stay as they are.
            setattr(module, "_conv_forward", partial(_convolve, given=given))  # noqa: B010


def _convolve(
    pixels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, given: Any
) -> torch.Tensor:
    padding, stride, dilation, groups = given
    if pixels.device.type != "cpu" or pixels.dtype != torch.float32:
        return torch.nn.functional.conv3d(pixels, weight, bias, stride, padding, dilation, groups)
    convolved: torch.Tensor = torch.mkldnn_convolution(
        pixels, weight, bias, padding, stride, dilation, groups
    )
    return convolved
