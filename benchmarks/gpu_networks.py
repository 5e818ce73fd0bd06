"""Makes full-size networks with random weights on the device, in seconds, and times them.

Time and memory do not depend on the values of the weights. Nothing here says anything about
quality. Configurations: Wan-Video/Wan2.2 `wan/configs/`, as converted for diffusers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Scale:
    """A clip and the networks that make it. `heads` of `head_width` are the transformer's width."""

    name: str
    width: int
    height: int
    frames: int
    heads: int
    head_width: int
    layers: int
    transformer: Mapping[str, Any] = field(default_factory=dict)
    vae: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)

    @property
    def latent_frames(self) -> int:
        return (self.frames - 1) // 4 + 1

    @property
    def tokens(self) -> int:
        """Of self-attention: VAE stride (4, 8, 8), patch (1, 2, 2)."""
        return self.latent_frames * (self.height // 16) * (self.width // 16)

    @property
    def text_width(self) -> int:
        return int(self.text["d_model"])


A14B = Scale(
    name="a14b",
    width=1280,
    height=720,
    frames=81,
    heads=40,
    head_width=128,
    layers=40,
    transformer={"ffn_dim": 13824, "freq_dim": 256},
    text={
        "vocab_size": 256384,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
)
TINY = Scale(
    name="tiny",
    width=64,
    height=48,
    frames=9,
    heads=2,
    head_width=16,
    layers=2,
    transformer={"ffn_dim": 64, "freq_dim": 32},
    vae={
        "base_dim": 4,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],  # the library's own spelling
    },
    text={
        "vocab_size": 128,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
    },
)
SMALL = Scale(
    name="small",
    width=832,
    height=480,
    frames=17,
    heads=12,
    head_width=128,
    layers=30,
    transformer={"ffn_dim": 8960, "freq_dim": 256},
    text={
        "vocab_size": 256384,
        "d_model": 1024,
        "d_kv": 64,
        "d_ff": 2816,
        "num_layers": 8,
        "num_heads": 16,
        "feed_forward_proj": "gated-gelu",
    },
)
"""Two experts of the size of Wan2.1 1.3B, for measuring memory on a machine without a GPU."""

SCALES = {scale.name: scale for scale in (A14B, SMALL, TINY)}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def _made_as(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device():
            yield
    finally:
        torch.set_default_dtype(before)


def transformer(scale: Scale, layers: int | None = None) -> Any:
    """One expert in bfloat16. The layers that diffusers keeps in float32 are in float32."""
    from diffusers import WanTransformer3DModel
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

    with _made_as(torch.bfloat16):
        made = WanTransformer3DModel(
            num_attention_heads=scale.heads,
            attention_head_dim=scale.head_width,
            in_channels=36,
            out_channels=16,
            text_dim=scale.text_width,
            num_layers=scale.layers if layers is None else layers,
            rope_max_seq_len=1024,
            **scale.transformer,
        ).eval()
    with device():
        made.rope = WanRotaryPosEmbed(scale.head_width, (1, 2, 2), 1024)
    for name, parameter in made.named_parameters():
        if any(part in name.split(".") for part in made._keep_in_fp32_modules):
            parameter.data = parameter.data.float()
    return made.requires_grad_(False)


def vae(scale: Scale, dtype: torch.dtype) -> Any:
    from diffusers import AutoencoderKLWan

    with device():
        made = AutoencoderKLWan(**scale.vae).to(dtype)
    return made.eval().requires_grad_(False)


def text_encoder(scale: Scale) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    with _made_as(torch.bfloat16):
        made = UMT5EncoderModel(UMT5Config(**scale.text))
    return made.eval().requires_grad_(False)


def forward_arguments(scale: Scale) -> dict[str, Any]:
    """The arguments of one call of the transformer."""
    shape = (1, 36, scale.latent_frames, scale.height // 8, scale.width // 8)
    place = {"device": device(), "dtype": torch.bfloat16}
    return {
        "hidden_states": torch.randn(shape, **place),
        "timestep": torch.full((1,), 937.0, device=device()),
        "encoder_hidden_states": torch.randn(1, 512, scale.text_width, **place),
        "return_dict": False,
    }


def block_arguments(scale: Scale, whole: Any) -> tuple[Any, ...]:
    """The arguments of one block of `whole`."""
    width = scale.heads * scale.head_width
    place = {"device": device(), "dtype": torch.bfloat16}
    shape = (1, 16, scale.latent_frames, scale.height // 8, scale.width // 8)
    return (
        torch.randn(1, scale.tokens, width, **place),
        torch.randn(1, 512, width, **place),
        torch.randn(1, 6, width, **place),
        whole.rope(torch.empty(shape, device=device())),
    )


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], repeats: int = 3, warm: int = 1) -> float:
    """The median wall time of `work`, including the device's work."""
    for _ in range(warm):
        work()
    took = []
    for _ in range(repeats):
        synchronize()
        started = time.perf_counter()
        work()
        synchronize()
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def peak_gb(*, reset: bool = False) -> float:
    """The peak memory of torch's tensors on the device since the last reset, in 10^9 bytes."""
    if not torch.cuda.is_available():
        return 0.0
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated() / 1e9
