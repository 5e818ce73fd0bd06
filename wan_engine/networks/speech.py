"""The transformer of Wan2.2-S2V, which animates a speaker in a picture to a sound.

Ported from the description of the published weights and configuration (Wan-AI/Wan2.2-S2V-14B). Its
results in float32 equal the authors' network (Wan-Video/Wan2.2 at 42bf4cf, `wan/modules/s2v`),
whose numbers are in the tests. It contains only what that checkpoint uses: adaptive norms by the
sound, packed frames, and time 0 for every token that is not noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.normalization import FP32LayerNorm
from torch import nn

from wan_engine.networks.attention import Attention, Rotary
from wan_engine.networks.speech_audio import SoundEncoder, SoundInjector
from wan_engine.networks.speech_names import native_config, native_name
from wan_engine.networks.speech_positions import (
    MOTION_FRAMES,
    MOTION_LATENTS,
    FramePacker,
    grids,
    rotary,
)

_PATCH = (1, 2, 2)
_VIDEO, _PICTURE, _MOTION = range(3)  # rows of `trainable_cond_mask`


class SpeechBlock(nn.Module):
    """Self-attention, attention to the text, and a feed-forward network, modulated by the time of
    each token."""

    def __init__(self, dim: int, ffn_dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = FP32LayerNorm(dim, eps, False), FP32LayerNorm(dim, eps, False)
        self.norm3 = FP32LayerNorm(dim, eps)
        self.self_attn, self.cross_attn = Attention(dim, heads, eps), Attention(dim, heads, eps)
        self.ffn = nn.Sequential(
            nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        times: torch.Tensor,
        rotary_emb: Rotary,
        video: int,
    ) -> torch.Tensor:
        """Takes tokens [1, n, dim]. The first `video` tokens use the first of the two `times` [2,
        6, dim] (float32), and the others use the second."""
        shift, scale, gate, shift_2, scale_2, gate_2 = (self.modulation + times).unbind(1)
        states = _modulated(self.norm1(hidden_states.float()), shift, scale, video)
        attended = self.self_attn(states.type_as(hidden_states), rotary=rotary_emb)
        hidden_states = _gated(hidden_states, attended, gate, video)
        states = self.norm3(hidden_states.float()).type_as(hidden_states)
        hidden_states = hidden_states + self.cross_attn(states, context=encoder_hidden_states)
        states = _modulated(self.norm2(hidden_states.float()), shift_2, scale_2, video)
        fed = self.ffn(states.type_as(hidden_states))
        return _gated(hidden_states, fed, gate_2, video)


def _modulated(
    states: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, video: int
) -> torch.Tensor:
    """Apply the numbers [2, dim] to `states` [1, n, dim]: the first row to the video, the second to
    the rest."""
    parts = states[:, :video], states[:, video:]
    return torch.cat([part * (1 + scale[at]) + shift[at] for at, part in enumerate(parts)], dim=1)


def _gated(
    hidden: torch.Tensor, added: torch.Tensor, gate: torch.Tensor, video: int
) -> torch.Tensor:
    parts = added[:, :video].float() * gate[0], added[:, video:].float() * gate[1]
    return (hidden.float() + torch.cat(parts, dim=1)).type_as(hidden)


class Head(nn.Module):
    """Projects tokens to patches."""

    def __init__(self, dim: int, out_dim: int, eps: float) -> None:
        super().__init__()
        self.norm = FP32LayerNorm(dim, eps, False)
        self.head = nn.Linear(dim, math.prod(_PATCH) * out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    def forward(self, hidden: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Takes [1, n, dim] and `time` [1, dim] (float32)."""
        shift, scale = (self.modulation + time[:, None]).chunk(2, dim=1)
        patches: torch.Tensor = self.head(
            (self.norm(hidden.float()) * (1 + scale) + shift).type_as(hidden)
        )
        return patches


class SpeechTransformer(ModelMixin, ConfigMixin):
    """See the module. The arguments are those of the authors' `config.json`. `audio_layers` is the
    number of layers of the speech model, which is a constant in their code."""

    _keep_in_fp32_modules = (
        "time_embedding", "modulation", "norm1", "norm2", "norm3", "casual_audio_encoder",
    )  # fmt: skip
    _repeated_blocks = ("SpeechBlock",)
    _no_split_modules = ("SpeechBlock",)
    _group_offload_block_modules = ("audio_injector",)  # 3.8 GB, streamed as the blocks are

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        dim: int = 5120,
        ffn_dim: int = 13824,
        freq_dim: int = 256,
        text_dim: int = 4096,
        in_dim: int = 16,
        out_dim: int = 16,
        cond_dim: int = 16,
        num_heads: int = 40,
        num_layers: int = 40,
        audio_dim: int = 1024,
        audio_layers: int = 25,
        num_audio_token: int = 4,
        audio_inject_layers: tuple[int, ...] = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39),
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv3d(in_dim, dim, _PATCH, stride=_PATCH)
        self.cond_encoder = nn.Conv3d(cond_dim, dim, _PATCH, stride=_PATCH)
        self.text_embedding = nn.Sequential(
            nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(
            SpeechBlock(dim, ffn_dim, num_heads, eps) for _ in range(num_layers)
        )
        self.head = Head(dim, out_dim, eps)
        self.trainable_cond_mask = nn.Embedding(3, dim)
        # The authors' spelling, as in all names of weights.
        self.casual_audio_encoder = SoundEncoder(audio_dim, audio_layers, dim, num_audio_token)
        self.audio_injector = SoundInjector(len(audio_inject_layers), dim, num_heads, eps)
        self.frame_packer = FramePacker(in_dim, dim)
        self._injected = {block: at for at, block in enumerate(sorted(audio_inject_layers))}

    native_name = staticmethod(native_name)
    """Return the name of a weight in this network for its name in a file."""

    @classmethod
    def load_config(cls, folder: str | Path, **options: Any) -> Any:
        """Load the configuration in `folder`, in either layout. Raises `ConfigurationError` for
        another variant of the network."""
        found: Any = super().load_config(folder, **options)
        return native_config(found) if isinstance(found, Mapping) else found

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        picture: torch.Tensor,
        motion: torch.Tensor,
        sound: torch.Tensor,
        pose: torch.Tensor | None = None,
        *,
        first_moves_freely: bool = False,
    ) -> torch.Tensor:
        """Return the velocity [1, 16, t, h, w] of noisy latents of that shape at `timestep` [1].

        `encoder_hidden_states` [1, 512, text_dim]; `picture` [1, 16, 1, h, w]; `motion` [1, 16, n,
        h, w], the latents before; `sound` [1, layers, audio_dim, 4 t], the features of each video
        frame; `pose` [1, 16, t, h, w]. `first_moves_freely`: no frames came before, and `motion` is
        left out.
        """
        if pose is None:  # as the authors do, so that the bias is added
            pose = hidden_states.new_zeros(1, self.config.cond_dim, *hidden_states.shape[2:])
        patches = self.patch_embedding(hidden_states) + self.cond_encoder(pose)
        frames, height, width = patches.shape[2:]
        tokens, video = self._tokens(patches, picture, None if first_moves_freely else motion)
        boxes = tuple(grids(frames, height, width, motion=not first_moves_freely))
        head_dim = self.config.dim // self.config.num_heads
        positions = rotary(boxes, head_dim, tokens.device)
        time, times = self._times(timestep, tokens.dtype)
        text = self.text_embedding(encoder_hidden_states)
        heard, whole = (one.to(tokens.dtype) for one in self._heard(sound))
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, text, times, positions, video)
            if (layer := self._injected.get(index)) is not None:
                shown = self.audio_injector(layer, tokens[:, :video], heard, whole)
                tokens = torch.cat([shown, tokens[:, video:]], dim=1)
        return _unpatched(self.head(tokens[:, :video], time), (frames, height, width))

    def _tokens(
        self, patches: torch.Tensor, picture: torch.Tensor, motion: torch.Tensor | None
    ) -> tuple[torch.Tensor, int]:
        """Return the tokens of the video, the picture and the motion, [1, n, dim], each with the
        embedding of its kind, and the number of video tokens."""
        parts = [_flat(patches), _flat(self.patch_embedding(picture))]
        if motion is not None:
            parts.append(self.frame_packer(motion))
        kinds = self.trainable_cond_mask(
            torch.tensor([_VIDEO, _PICTURE, _MOTION]).to(patches.device)
        )
        told = [part + kind for part, kind in zip(parts, kinds, strict=False)]
        return torch.cat(told, dim=1), parts[0].shape[1]

    def _times(
        self, timestep: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embedding of the time, [1, dim], and the modulations of it and of time 0, [2,
        6, dim], all in float32."""
        times = torch.cat([timestep, torch.zeros_like(timestep)])
        embedded = self.time_embedding(_sines(times, self.config.freq_dim))
        projected = self.time_projection(embedded.to(dtype)).float()
        return embedded[:1], projected.unflatten(1, (6, -1))

    def _heard(self, sound: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens [frames, k, dim] and vectors [frames, dim] for the latent frames of the
        video. The motion before it gets the sound of its first frame."""
        before = sound[..., :1].expand(*sound.shape[:-1], MOTION_FRAMES)
        tokens, whole = self.casual_audio_encoder(torch.cat([before, sound], dim=-1))
        return tokens[0, MOTION_LATENTS:], whole[0, MOTION_LATENTS:]


def _flat(patches: torch.Tensor) -> torch.Tensor:
    return patches.flatten(2).transpose(1, 2)


def _sines(times: torch.Tensor, width: int) -> torch.Tensor:
    """Return float32 [n, width]: the cosines and then the sines of the times."""
    half = torch.arange(width // 2, dtype=torch.float64, device=times.device) / (width // 2)
    angles = torch.outer(times.double(), 10_000.0**-half)
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


def _unpatched(patches: torch.Tensor, sizes: tuple[int, int, int]) -> torch.Tensor:
    """Reshape [1, t h w, 2 2 c] to [1, c, t, 2 h, 2 w]."""
    found = patches[0].unflatten(0, sizes).unflatten(-1, (*_PATCH, -1))
    placed = found.permute(6, 0, 3, 1, 4, 2, 5)
    video: torch.Tensor = placed.flatten(1, 2).flatten(2, 3).flatten(3, 4)[None]
    return video
