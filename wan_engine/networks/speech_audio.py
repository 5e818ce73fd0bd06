"""Encodes sound for the transformer of Wan2.2-S2V: five tokens and one vector per latent frame, and
the layers that add them to the frame's tokens."""

from __future__ import annotations

import torch
from diffusers.models.normalization import FP32LayerNorm
from torch import nn

from wan_engine.networks.attention import Attention

_KERNEL = 3
_EPS_ENCODER = 1e-6
_EPS_INJECTED = 1e-5


class CausalConvolution(nn.Module):
    """A convolution over time without later frames. Before the first frame, the first frame
    repeats."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels_out, _KERNEL, stride=stride)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Maps [b, n, channels_in] to [b, ceil(n / stride), channels_out]."""
        padded = nn.functional.pad(hidden.transpose(1, 2), (_KERNEL - 1, 0), mode="replicate")
        convolved: torch.Tensor = self.conv(padded)
        return convolved.transpose(1, 2)


class SoundTokens(nn.Module):
    """Maps the features of four video frames to the tokens of one latent frame. The local and the
    global path share all layers but the first and the last."""

    def __init__(self, audio_dim: int, dim: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.conv1_local = CausalConvolution(audio_dim, dim // 4 * tokens)
        self.conv1_global = CausalConvolution(audio_dim, dim // 4)
        self.conv2 = CausalConvolution(dim // 4, dim // 2, stride=2)
        self.conv3 = CausalConvolution(dim // 2, dim, stride=2)
        self.norm1, self.norm2, self.norm3 = (
            nn.LayerNorm(width, eps=_EPS_ENCODER, elementwise_affine=False)
            for width in (dim // 4, dim // 2, dim)
        )
        self.final_linear = nn.Linear(dim, dim)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps [1, n, audio_dim] to [1, ceil(n / 4), tokens + 1, dim] and [1, ceil(n / 4), dim]."""
        heads = self.conv1_local(features).unflatten(2, (self.tokens, -1))
        local = self._shared(heads[0].transpose(0, 1)).transpose(0, 1)[None]
        padding = self.padding_tokens.expand(1, local.shape[1], 1, -1)
        whole: torch.Tensor = self.final_linear(self._shared(self.conv1_global(features)))
        return torch.cat([local, padding], dim=2), whole

    def _shared(self, hidden: torch.Tensor) -> torch.Tensor:
        silu = nn.functional.silu
        hidden = self.conv2(silu(self.norm1(hidden)))
        hidden = self.conv3(silu(self.norm2(hidden)))
        return silu(self.norm3(hidden))


class SoundEncoder(nn.Module):
    """Maps the layers of a speech model, each with its own weight, to tokens."""

    def __init__(self, audio_dim: int, audio_layers: int, dim: int, tokens: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((1, audio_layers, 1, 1), 0.01))
        self.encoder = SoundTokens(audio_dim, dim, tokens)

    def forward(self, layers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps [1, layers, audio_dim, n] to the output of `SoundTokens.forward`. Computes in its
        own dtype."""
        layers = layers.to(self.weights.dtype)
        weights = nn.functional.silu(self.weights)
        mixed = (layers * weights).sum(dim=1) / weights.sum(dim=1)
        tokens: tuple[torch.Tensor, torch.Tensor] = self.encoder(mixed.transpose(1, 2))
        return tokens


class SoundModulation(nn.Module):
    """A norm with scale and shift from the frame's sound."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)
        self.norm = FP32LayerNorm(dim, _EPS_INJECTED, False)

    def forward(self, hidden: torch.Tensor, sound: torch.Tensor) -> torch.Tensor:
        """Modulates [frames, tokens, dim] by the vectors [frames, dim]."""
        shift, scale = self.linear(nn.functional.silu(sound))[:, None].chunk(2, dim=-1)
        modulated: torch.Tensor = self.norm(hidden) * (1 + scale) + shift
        return modulated


class SoundInjector(nn.Module):
    """Adds the sound to the video's tokens after some of the blocks."""

    def __init__(self, layers: int, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.injector = nn.ModuleList(Attention(dim, heads, eps) for _ in range(layers))
        self.injector_adain_layers = nn.ModuleList(SoundModulation(dim) for _ in range(layers))

    def forward(
        self, layer: int, hidden: torch.Tensor, tokens: torch.Tensor, whole: torch.Tensor
    ) -> torch.Tensor:
        """Takes the video's tokens [1, frames * n, dim] and the sound of each frame: `tokens`
        [frames, k, dim] and `whole` [frames, dim]."""
        frames = hidden.unflatten(1, (len(tokens), -1))[0]
        modulated = self.injector_adain_layers[layer](frames, whole)
        heard: torch.Tensor = self.injector[layer](modulated, context=tokens)
        return hidden + heard.flatten(0, 1)[None]
