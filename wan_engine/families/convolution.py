"""Runs the VAE's convolutions through oneDNN on a CPU, whatever their size.

torch (2.13) takes oneDNN where batch * channels * frames * rows is over 20480, a rule made for
pictures, whose columns are the fourth number. Smaller ones go to `slow_conv3d`, which first writes
every pixel once for each weight of the kernel. All but the first at full size in the decoder of
`wan-tiny` are smaller: on one core 70 ms instead of 10, and 110 MiB for what was written.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

_SMALLEST_KERNEL = 27  # weights; below 3 x 3 x 3 the other way is as fast


def use_onednn(vae: Any) -> None:
    """Let the 3D convolutions of `vae`, float32 on the CPU, be computed by oneDNN. Results differ
    from stock's in the last bits. Nothing where torch was built without it."""
    if not torch.backends.mkldnn.is_available():
        return
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d) and module.weight[0, 0].numel() >= _SMALLEST_KERNEL:
            given = (module.padding, module.stride, module.dilation, module.groups)
            # What `Conv3d.forward` calls: causal padding, hooks and weights stay as they are.
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
