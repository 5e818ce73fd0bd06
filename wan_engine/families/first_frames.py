"""Encodes the first frames of a clip, the grey frames after them and the last frame, without
computing the same frames twice.

It knows the encoder of the Wan VAE (diffusers 0.42.1), not pipelines.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import CACHE_T, patchify

_STRIDE = 4  # frames per latent; the first latent is one frame


def encode_then_grey(
    vae: Any, pixels: torch.Tensor, frames: int, last: torch.Tensor | None = None
) -> torch.Tensor:
    """The mode of `vae.encode` for a clip of `frames`, 4n + 1, that begins with `pixels` [1, 3, 4m
    + 1, H, W] in -1..1 and is 0 afterwards: [1, c, n + 1, h, w], the same numbers. If there is a
    `last` frame [1, 3, 1, H, W], the clip ends with it.

    The causal encoder looks a few frames back. So after the pixels, each part of it soon gets the
    same input as before and gives the same output. From there on, that part is not run again. With
    the VAE of Wan 2.1 and 2.2 A14B this saves two thirds of the work for 81 frames that begin with
    an image.
    """
    if hook := getattr(vae, "_hf_hook", None):
        hook.pre_forward(vae)  # offloaded: its submodules are called without the hook
    if vae.config.patch_size is not None:
        pixels = patchify(pixels, patch_size=vae.config.patch_size)
        last = None if last is None else patchify(last, patch_size=vae.config.patch_size)
    vae.clear_cache()
    try:
        encoded = torch.cat(list(_chunks(vae, pixels, frames, last)), dim=2)
        moments: torch.Tensor = vae.quant_conv(encoded)
    finally:
        vae.clear_cache()
    return moments[:, : vae.config.z_dim]


def _chunks(
    vae: Any, pixels: torch.Tensor, frames: int, last: torch.Tensor | None
) -> Iterator[torch.Tensor]:
    """The encoder's output for each latent. This is the loop of `AutoencoderKLWan._encode`, without
    the first parts once they are settled: `constant` is the output of the last of them."""
    parts, memory, known = list(_parts(vae.encoder)), vae._enc_feat_map, pixels.shape[2]
    constant = pixels.new_zeros(*pixels.shape[:2], _STRIDE, *pixels.shape[3:])
    settled = settled_slots = 0
    assert last is None or frames - known >= _STRIDE, "the last frame has a latent of its own"
    if last is not None:
        ending = torch.cat([constant[:, :, 1:], last], dim=2)
    for first in (0, *range(1, frames, _STRIDE)):
        ends = last is not None and first == frames - _STRIDE
        grey = first >= known and not ends
        x = constant if grey else pixels[:, :, first : first + (_STRIDE if first else 1)]
        x = ending if ends else x
        slot = [settled_slots if grey else 0]
        for index in range(settled if grey else 0, len(parts)):
            may_settle = grey and index == settled  # the input is constant from here on
            begin, before = slot[0], list(memory) if may_settle else []
            x = parts[index](x, feat_cache=memory, feat_idx=slot)
            used = slice(begin, slot[0])
            if may_settle and _equal(before[used], memory[used]):
                settled, settled_slots, constant = index + 1, slot[0], x
        yield x


def _equal(before: list[Any], after: list[Any]) -> bool:
    return all(
        old is not None and torch.equal(old, new) for old, new in zip(before, after, strict=True)
    )


def _parts(encoder: Any) -> Iterator[Any]:
    """The parts of `WanEncoder3d.forward`, with the arguments of its blocks."""
    yield partial(_convolve, encoder.conv_in)
    yield from encoder.down_blocks
    yield encoder.mid_block
    yield partial(_head, encoder)


def _head(encoder: Any, x: torch.Tensor, **memory: Any) -> torch.Tensor:
    return _convolve(encoder.conv_out, encoder.nonlinearity(encoder.norm_out(x)), **memory)


def _convolve(
    convolution: Any, x: torch.Tensor, feat_cache: list[Any], feat_idx: list[int]
) -> torch.Tensor:
    """A causal convolution that remembers its last two frames."""
    slot = feat_idx[0]
    last = x[:, :, -CACHE_T:].clone()
    if last.shape[2] < CACHE_T and feat_cache[slot] is not None:
        last = torch.cat([feat_cache[slot][:, :, -1:], last], dim=2)
    convolved: torch.Tensor = convolution(x, feat_cache[slot])
    feat_cache[slot] = last
    feat_idx[0] += 1
    return convolved
