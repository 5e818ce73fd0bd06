"""Replaces layers of the networks with equivalents that train faster, with the same weights and
results.

cuDNN is slow at small 3D convolutions in half precision. torch is slow at norms of mixed precision,
which also leave the following layers in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm


class _ByFrames(WanCausalConv3d):
    """A causal 3D convolution as a 2D convolution over frames, with the frames before as more
    channels."""

    def forward(self, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        taps, before = self.kernel_size[0], self._padding[4]
        if cache_x is not None and before > 0:
            x = torch.cat([cache_x, x], dim=2)
            before -= cache_x.shape[2]
        if x.shape[2] == 1 and before == taps - 1:  # a picture uses the last tap only
            frames, weight, count = x.transpose(1, 2), self.weight[:, :, -1], 1
        else:
            frames = F.pad(x, (0, 0, 0, 0, before, 0)).transpose(1, 2)  # [n, t, c, h, w]
            stride = self.stride[0]
            count = (frames.shape[1] - taps) // stride + 1
            last = (count - 1) * stride + 1
            frames = torch.cat([frames[:, k : k + last : stride] for k in range(taps)], dim=2)
            weight = self.weight.transpose(1, 2).flatten(1, 2)
        flat = frames.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        padding = (self._padding[2], self._padding[0])
        out = F.conv2d(flat, weight, self.bias, padding=padding)
        return out.unflatten(0, (-1, count)).transpose(1, 2)


class _RMSNorm(torch.nn.RMSNorm):
    """A norm with its gain in the precision of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class _ChannelNorm(WanRMS_norm):
    """The same for the VAE's norm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normalised = F.normalize(x.float(), dim=1).to(x.dtype)
        return normalised * (self.scale * self.gamma).to(x.dtype)


def half_precision(device: torch.device) -> torch.autocast:
    """Use bfloat16 for large operations, if the device supports it."""
    able = device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=able)


_FAST = {WanCausalConv3d: _ByFrames, torch.nn.RMSNorm: _RMSNorm, WanRMS_norm: _ChannelNorm}


def make_fast(network: Any) -> None:
    """Replace the layers of `network` in place. The names of its state stay the same."""
    for module in network.modules():
        if type(module) in _FAST:
            module.__class__ = _FAST[type(module)]
