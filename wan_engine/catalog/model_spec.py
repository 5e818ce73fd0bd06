"""Defines the row of a video model: its inputs and outputs, and the settings that it was trained
for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from wan_engine.schema import Input, Task

Sampler = Literal["unipc", "distilled-euler"]
Expert = Literal["high", "low", "both"]
Continuation = Literal["svi", "latents", "last_frames", "motion_frames"]
"""How a segment continues the previous one in clips that are longer than the model's own length.

`svi`: the condition of Stable Video Infinity 2.0 Pro, which needs its LoRA pair. `latents`: the
last clean latents are the first ones of the next segment. `last_frames`: the last frames are
encoded again into the condition. `motion_frames`: the same, and the segment begins after them.
"""

# Wan-Video/Wan2.2 wan/configs/shared_config.py; the models were tuned with this exact Chinese text.
_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"  # noqa: RUF001
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"  # noqa: RUF001
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"  # noqa: RUF001
)


@dataclass(frozen=True)
class HubLora:
    """A LoRA on the Hub that belongs to a row. `download` accepts only files with this `sha256`;
    None accepts any."""

    repo: str
    path: str
    sha256: str | None
    expert: Expert
    scale: float = 1.0


@dataclass(frozen=True)
class Networks:
    """The memory of a model: weights in bfloat16 in units of 10^9 bytes, and working memory in
    bytes per pixel of the rendered area, at the trained length.

    `vae_gb` is the memory of all networks in float32, so it includes those that encode sound.
    `never_float8_gb`: the part of an expert outside its blocks, if that is large."""

    expert_gb: float
    experts: int
    text_encoder_gb: float
    vae_gb: float
    working_bytes_per_pixel: int
    never_float8_gb: float = 0.0


@dataclass(frozen=True)
class Part:
    """The folder of one network or tokenizer in a repository that is not in diffusers' layout:
    `path` in the row's own repository, or in another one."""

    name: str
    path: str
    repo: str | None = None
    revision: str | None = None


_WORDS: Mapping[Input, str] = {
    "first_picture": "a first picture",
    "last_picture": "a last picture",
    "first_clip": "a clip to continue",
    "references": "references",
    "driving_sound": "a sound that drives the picture",
}


@dataclass(frozen=True)
class ModelSpec:
    """One checkpoint and the settings it was trained for.

    `task` is its task, `takes` are the inputs that it accepts besides the prompt, and `needs` are
    those that it requires. `gives_sound`: it also makes sound. `family` is a name of
    `wan_engine.families.FAMILIES`, or `module:Class`.

    `size_multiple`: rendered sides are multiples of it (VAE stride times patch). `max_frames`: the
    trained length, 4n + 1, or 4n if segments share no frame. `guidance_scale` belongs to the
    high-noise expert, `guidance_scale_2` to the low-noise one (the order of diffusers; the official
    configuration has the reverse order). 1.0 disables CFG. `flow_shift_480p` is the shift for
    renders up to 832x480, if the row has a separate one. `continuations` are the continuations that
    the model supports, and `continuation` is the default. `overlap_frames`: the number of frames,
    4n + 1 or 0, that a segment shares with the previous one. `full_segments`: each of several
    segments has the trained length; without it, all have the same length and are as short as
    possible. `text_tokens`: the number of prompt tokens that the text encoder reads. `parts`: where
    the networks are, if the repository has a layout of its own. `is_toy`: a tiny checkpoint that
    `wan_engine.toy` writes on this machine, so nothing is downloaded, and it runs on any CPU.
    `caveat`: a warning for users of a toy. `opt_in`: the reason why `auto` never takes the row, so
    that you have to name it. `wan_blocks`: its blocks are Wan's, so they can be compiled and
    computed in 8 bits.
    """

    name: str
    title: str
    family: str
    fps: int
    max_frames: int
    size_multiple: int
    max_area: int
    steps: int
    guidance_scale: float
    guidance_scale_2: float | None
    flow_shift: float
    flow_shift_480p: float | None = None
    sampler: Sampler = "unipc"
    task: Task = "image-to-video"
    takes: tuple[Input, ...] = ("first_picture",)
    needs: tuple[Input, ...] = ("first_picture",)
    gives_sound: bool = False
    negative_prompt: str = _NEGATIVE_PROMPT
    continuation: Continuation = "last_frames"
    continuations: tuple[Continuation, ...] = ("last_frames", "svi")
    overlap_frames: int = 5
    full_segments: bool = False
    text_tokens: int = 512  # Wan-Video/Wan2.2 wan/configs/shared_config.py, text_len
    repo: str | None = None
    revision: str | None = None
    parts: tuple[Part, ...] = ()
    loras: tuple[HubLora, ...] = ()
    is_toy: bool = False
    caveat: str = ""
    opt_in: str = ""
    wan_blocks: bool = True
    licence: str = "Apache-2.0"
    download_gb: float = 0.0
    networks: Networks = Networks(0.02, 2, 0.01, 0.01, working_bytes_per_pixel=1000)

    @property
    def taken(self) -> str:
        """The inputs that it accepts, in words."""
        return ", ".join(_WORDS[one] for one in self.takes) or "a prompt alone"

    @property
    def working_gb(self) -> float:
        """GPU memory in GB besides the weights, at the largest area that is rendered."""
        return self.networks.working_bytes_per_pixel * self.max_area / 1e9
