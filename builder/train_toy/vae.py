"""Trains the tiny VAE: on pictures, then on short clips through the causal path, then at the real
size."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanResidualBlock,
    patchify,
    unpatchify,
)

from builder.train_toy.fast import half_precision
from builder.train_toy.moves import warp
from builder.train_toy.pictures import Pictures
from wan_engine.toy.camera_moves import MOVES

LEARNING_RATE = 1.2e-3
NOISE = 0.12
"""Noise on the latents, relative to their standard deviation. A tiny transformer leaves at least
this much, so the decoder must tolerate it."""
_SIZE_WEIGHT = 0.02

_ENCODER_RATE = 0.3  # part of LEARNING_RATE, because the encoder begins with a good code
_FIRST_ENCODER, _FIRST_CLIPS, _FIRST_LARGE = 0.1, 0.25, 0.8  # progress


def initialise(vae: Any) -> None:
    """Start as a network for pictures with silent residual branches.

    Only the shortcuts then carry the picture. A frame does not depend on the frames before it. The
    layers that halve and double the frames keep and repeat the latest frame, so a still clip begins
    as well as its picture.
    """
    for module in vae.modules():
        if isinstance(module, WanCausalConv3d) and module.kernel_size == (3, 1, 1):
            with torch.no_grad():
                module.weight.zero_()
                module.bias.zero_()
                inputs = torch.arange(module.weight.shape[1])
                for outputs in range(0, module.weight.shape[0], len(inputs)):
                    module.weight[outputs + inputs, inputs, -1] = 1.0
        if isinstance(module, WanCausalConv3d) and module.kernel_size == (3, 3, 3):
            with torch.no_grad():
                last = module.weight[:, :, -1].clone()
                module.weight.zero_()
                module.weight[:, :, -1] = last * math.sqrt(3)
        if isinstance(module, WanResidualBlock):
            torch.nn.init.zeros_(module.conv2.weight)
    with torch.no_grad():  # the posterior that NOISE stands for, in every position
        channels = vae.config.z_dim
        vae.quant_conv.weight[channels:] = 0
        vae.quant_conv.bias[channels:] = 2 * math.log(NOISE)


def encode(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Return the means of the latents [n, c, (t - 1) / 4 + 1, h / 8, w / 8] of `pixels` [n, 3, t,
    h, w].

    `AutoencoderKLWan.encode` computes the same, one group of frames at a time. Here the encoder
    runs twice: its memory holds the last two frames of each layer, for any number of frames.
    """
    vae.clear_cache()
    pixels = patchify(pixels, vae.config.patch_size)
    memory = vae._enc_feat_map
    out = vae.encoder(pixels[:, :, :1], feat_cache=memory, feat_idx=[0])
    if pixels.shape[2] > 1:
        rest = vae.encoder(pixels[:, :, 1:], feat_cache=memory, feat_idx=[0])
        out = torch.cat([out, rest], dim=2)
    vae.clear_cache()
    means: torch.Tensor = vae.quant_conv(out)[:, : vae.config.z_dim]
    return means


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Return the pixels [n, 3, t, h, w] of `latents`, unclamped, in two runs as in `encode`."""
    vae.clear_cache()
    latents = vae.post_quant_conv(latents)
    memory = vae._feat_map
    out = vae.decoder(latents[:, :, :1], feat_cache=memory, feat_idx=[0], first_chunk=True)
    if latents.shape[2] > 1:
        rest = vae.decoder(latents[:, :, 1:], feat_cache=memory, feat_idx=[0])
        out = torch.cat([out, rest], dim=2)
    vae.clear_cache()
    pixels: torch.Tensor = unpatchify(out, vae.config.patch_size)
    return pixels


class VaeStage:
    """Implements `Stage`. `scale` reduces the batches, for a CPU."""

    name = "vae"

    def __init__(
        self, vae: Any, pictures: Pictures, generator: torch.Generator, *, scale: float = 1.0
    ) -> None:
        self.vae, self._pictures, self._generator = vae, pictures, generator
        self._scale = scale
        self._parameters = list(vae.parameters())
        coders = [*vae.encoder.parameters(), *vae.quant_conv.parameters()]
        others = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
        self.optimizer = torch.optim.AdamW(
            [{"params": others}, {"params": coders, "lr": _ENCODER_RATE * LEARNING_RATE}],
            lr=LEARNING_RATE,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            fused=generator.device.type == "cuda",
        )
        self._steps = 0

    def step(self, progress: float) -> dict[str, torch.Tensor]:
        """Train on one batch. The kinds of batches alternate, and the batches grow with the
        progress."""
        self._steps += 1
        coming = min(1.0, max(0.0, (progress - _FIRST_ENCODER) / _FIRST_ENCODER))
        self.optimizer.param_groups[1]["lr"] *= coming
        if self._steps % 50 == 0:
            self._pictures.refresh(2)
        kind, pixels = self._batch(progress)
        with half_precision(pixels.device):
            with torch.set_grad_enabled(progress >= _FIRST_ENCODER):
                latents = encode(self.vae, pixels).float()
            noise = torch.randn(latents.shape, generator=self._generator, device=latents.device)
            spread = latents.detach().std(dim=(0, 2, 3, 4), keepdim=True)
            seen = decode(self.vae, latents + NOISE * spread * noise).float()
        loss, squared = _distance(seen, pixels)
        size = latents.square().mean().sqrt()
        self.optimizer.zero_grad(set_to_none=True)
        (loss + _SIZE_WEIGHT * (size - 1).square()).backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self.optimizer.step()
        psnr = -10 * torch.log10(squared.detach() / 4)  # the range is 2
        return {f"{kind}_db": psnr, f"{kind}_loss": loss.detach(), "size": size.detach()}

    def _batch(self, progress: float) -> tuple[str, torch.Tensor]:
        if progress < _FIRST_CLIPS or (progress < _FIRST_LARGE and self._steps % 3 == 0):
            return "picture", self._pictures.sample(self._count(64), 128, 128)[:, :, None]
        if progress < _FIRST_LARGE:
            if self._steps % 8 == 1:
                return "long", self._clips(self._count(4), 33, 96, 96)
            return "clip", self._clips(self._count(16), 9, 128, 128)
        if self._steps % 8 == 1:
            return "long", self._clips(self._count(2), 81, 96, 96)
        if self._steps % 2:
            return "picture", self._pictures.sample(self._count(16), 144, 256)[:, :, None]
        return "large", self._clips(self._count(4), 17, 144, 256)

    def _count(self, count: int) -> int:
        return max(1, round(count * self._scale))

    def _clips(self, count: int, frames: int, height: int, width: int) -> torch.Tensor:
        """Return clips that begin anywhere in a move. Some are faster than the moves."""
        generator, device = self._generator, self._generator.device
        pictures = self._pictures.sample(count, height, width)
        moves = torch.randint(len(MOVES), (count,), generator=generator, device=device)
        speed = 1 + 2 * torch.rand(count, 1, generator=generator, device=device) ** 3
        begin = 60 * torch.rand(count, 1, generator=generator, device=device)
        return warp(pictures, moves, begin + speed * torch.arange(frames, device=device))


def _distance(seen: torch.Tensor, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss (absolute, squared, and of the edges; the first frame counts more), and the
    mean square."""
    error = seen - pixels
    squared = error.square().mean()
    edges = sum(
        (
            error.narrow(axis, 1, error.shape[axis] - 1)
            - error.narrow(axis, 0, error.shape[axis] - 1)
        )
        .abs()
        .mean()
        for axis in (3, 4)
    )
    # Hue is a small part of a pixel's error, and is lost first.
    patches = F.avg_pool3d(error, (1, 8, 8)).abs().mean()
    loss = error.abs().mean() + 2 * squared + 0.25 * edges + patches
    if pixels.shape[2] > 1:
        loss = loss + 0.2 * error[:, :, 0].abs().mean()
    return loss, squared


@torch.no_grad()
def measure_latents(vae: Any, pictures: Pictures, generator: torch.Generator, count: int) -> None:
    """Write the mean and standard deviation of the latents of clips into the VAE's
    configuration."""
    sums = []
    for _ in range(count):
        device = generator.device
        moves = torch.randint(len(MOVES), (2,), generator=generator, device=device)
        frames = 20.0 * torch.arange(5, device=device) + torch.zeros(2, 1, device=device)
        clip = warp(pictures.sample(2, 144, 256), moves, frames[:, :1] + frames * 0.05)
        latents = encode(vae, clip).float()
        sums.append(torch.stack([latents.mean((0, 2, 3, 4)), latents.square().mean((0, 2, 3, 4))]))
    mean, square = torch.stack(sums).mean(dim=0)
    std = (square - mean.square()).clamp_min(1e-6).sqrt()
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())


def normalise(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    mean, std = (
        torch.tensor(values, device=latents.device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (latents - mean) / std


def psnr(seen: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of values in -1..1, after rounding to 8 bits as
    in a file."""
    seen, wanted = ((((x.float().clamp(-1, 1) + 1) * 127.5).round()) for x in (seen, wanted))
    return float(10 * torch.log10(255.0**2 / F.mse_loss(seen, wanted).clamp_min(1e-6)))
