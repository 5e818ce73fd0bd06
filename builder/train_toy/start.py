"""Initializes the VAE's encoder with the principal components of 8x8 pixels.

A linear code of sixteen numbers for 192 values gives 25 to 32 dB on photographs. Gradient descent
from random layers takes long to reach that. The network always adds its shortcuts (averages of 2x2
positions and two frames) and a norm before its last layer, so the code takes them into account. A
still clip has the code of its picture in every latent frame.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

_LOUD = 3.0
"""A constant in every second channel before the norm, which makes the norm almost linear."""
_CODE_SIZE = 0.5  # standard deviation of the code before the norm


def begin_with_components(vae: Any, pictures: torch.Tensor) -> None:
    """Fit the encoder to the principal components of `pictures` [n, 3, h, w]. Requires silent
    residual branches (`vae.initialise`)."""
    channels = vae.config.z_dim
    pixels = _blocks(pictures, 8)
    mean, components, sizes = _principal(pixels, channels)
    code = components / sizes[:, None]  # [channels, 192], unit variance
    first = _first_stage(code * sizes[:, None], vae.encoder.down_blocks[0])
    _second_stage(first, code * _CODE_SIZE, vae.encoder.down_blocks[1])
    _let_patches_in(vae.encoder.conv_in)
    _head(vae, code @ mean)


def _blocks(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """Return the pixels of each block [n, 3 * side * side], in the order colour, row, column."""
    return F.pixel_unshuffle(pictures, side).permute(0, 2, 3, 1).flatten(0, 2)


def _principal(pixels: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """Return the mean, the first components [count, d], and their standard deviations."""
    mean = pixels.mean(dim=0)
    variances, vectors = torch.linalg.eigh((pixels - mean).T @ (pixels - mean) / len(pixels))
    return mean, vectors.flip(1)[:, :count].T, variances.flip(0)[:count].sqrt()


def _let_patches_in(conv: Any) -> None:
    """Put the 12 values of 2x2 pixels (the VAE's patch order) into the first channels, and nothing
    into the rest."""
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
        inputs = torch.arange(conv.weight.shape[1])
        conv.weight[inputs, inputs, -1, 1, 1] = 1.0


def _patch_index() -> torch.Tensor:
    """Return the channel of the VAE's patches for colour, row and column [3, 2, 2]; its order is
    colour, column, row."""
    return torch.arange(12).view(3, 2, 2).transpose(1, 2)


def _first_stage(wanted: torch.Tensor, block: Any) -> torch.Tensor:
    """Reduce 2x2 pixels to 4x4 in 32 channels. Returns the weights of each channel [32, 3, 4, 4].

    The first 12 are those of the shortcut, averages of each channel over 2x2 positions. The others
    contain most of the rest of the `wanted` components [n, 192].
    """
    conv, time_conv = block.downsampler.resample[1], block.downsampler.time_conv
    width, given = conv.weight.shape[0], 12
    average = torch.zeros(given, 3, 2, 2, 2, 2)  # colour; row, column; row, column within
    for colour in range(3):
        for row in range(2):
            for column in range(2):
                average[_patch_index()[colour, row, column], colour, :, row, :, column] = 0.25
    average = average.reshape(given, 48)
    parts = wanted.view(-1, 3, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, 48)
    basis = torch.linalg.qr(average.T).Q
    rest = parts - parts @ basis @ basis.T
    others = torch.linalg.svd(rest, full_matrices=False).Vh[: width - given]
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
        # For the first frame the shortcut counts half, because there is no frame before it.
        read = torch.cat([0.5 * average, others])
        conv.weight[:, :given, :2, :2] = _by_position(read)
        time_conv.weight.zero_()
        time_conv.bias.zero_()
        rest_of = torch.arange(given, width)
        time_conv.weight[rest_of, rest_of, 1:] = 0.5  # the mean of two frames, as the shortcut
    return torch.cat([average, others]).view(width, 3, 4, 4)


def _by_position(read: torch.Tensor) -> torch.Tensor:
    """Reshape [n, 48] over 4x4 pixels to a kernel [n, 12, 2, 2] over positions of 2x2 pixels."""
    values = read.view(-1, 3, 2, 2, 2, 2)  # n, colour, position row, row, position column, column
    kernel = torch.zeros(len(read), 12, 2, 2)
    for colour in range(3):
        for row in range(2):
            for column in range(2):
                index = _patch_index()[colour, row, column]
                kernel[:, index] = values[:, colour, :, row, :, column]
    return kernel


def _second_stage(first: torch.Tensor, code: torch.Tensor, block: Any) -> None:
    """Reduce 4x4 pixels to 8x8 in 64 channels: odd channels get the `code` [n, 192], then its
    negative."""
    resnet, conv = block.resnets[0], block.downsampler.resample[1]
    time_conv, inputs = block.downsampler.time_conv, len(first)
    count = len(code)
    # The code by least squares from the first stage's channels at four positions.
    places = torch.zeros(2, 2, inputs, 3, 8, 8)
    for row in range(2):
        for column in range(2):
            rows, columns = slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4)
            places[row, column, :, :, rows, columns] = first
    places = places.flatten(0, 2).flatten(1)
    weights = torch.linalg.lstsq(places.T, code.T).solution.T.view(count, 2, 2, inputs)
    with torch.no_grad():
        _pass(resnet.conv_shortcut, inputs)
        for layer in (conv, time_conv):
            layer.weight.zero_()
            layer.bias.zero_()
        odd = torch.arange(inputs) * 2 + 1
        target = torch.cat([weights, -weights]).permute(0, 3, 1, 2)  # [32, inputs, 2, 2]
        conv.weight[odd, :inputs, :2, :2] = target
        # The shortcut adds the average of channel c to channel 2 c + 1. It adds that of the frame
        # before, which the first frame lacks, to channel 2 c.
        channel = torch.arange(inputs)
        conv.weight[odd - 1, channel, :2, :2] = 0.25
        conv.weight[odd, channel, :2, :2] -= 0.25
        time_conv.weight[odd, odd, -1] = 1.0
        loud = _LOUD * (1 - 2.0 * (channel % 2))
        conv.bias[odd - 1] = loud
        time_conv.bias[odd - 1] = loud


def _pass(layer: Any, inputs: int) -> None:
    """Pass the first channels through, and set the others to zero."""
    layer.weight.zero_()
    layer.bias.zero_()
    index = torch.arange(inputs)
    layer.weight[index, index] = 1.0


def _head(vae: Any, offset: torch.Tensor) -> None:
    """Restore the code after norm and SiLU, from the differences of the code and its negative."""
    encoder, count = vae.encoder, len(offset)
    width = encoder.norm_out.gamma.shape[0]
    with torch.no_grad():
        for attention in encoder.mid_block.attentions:
            attention.proj.weight.zero_()
            attention.proj.bias.zero_()
        # The last block does not downsample, so its shortcut doubles its input. The norm divides
        # it.
        conv, norm = encoder.conv_out, _LOUD / 2**0.5 * (1 / _CODE_SIZE)
        conv.weight.zero_()
        conv.bias.zero_()
        channels = torch.arange(count)
        conv.weight[channels, 2 * channels + 1, -1, 1, 1] = norm
        conv.weight[channels, width // 2 + 2 * channels + 1, -1, 1, 1] = -norm
        conv.bias[:count] = -offset
        vae.quant_conv.weight.zero_()
        vae.quant_conv.bias[:count] = 0
        vae.quant_conv.weight[channels, channels] = 1.0
        latents = vae.post_quant_conv
        latents.weight.zero_()
        latents.bias.zero_()
        latents.weight[channels, channels] = 1.0
