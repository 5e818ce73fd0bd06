"""Which model, where its files are, and how it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class OwnLora(BaseModel):
    """A LoRA file of the operator's own, fused into the experts when the model is loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    scale: float = Field(default=1.0, allow_inf_nan=False)
    expert: Literal["high", "low", "both"] = "both"


class ModelSettings(BaseModel):
    """The row, its folder, LoRA files, and what replaces the row's numbers."""

    model: str = Field(
        default="auto",
        description="A catalogue name or a Hub id in diffusers layout, both with or without "
        "`@revision`, or a folder, or `auto`: the best model whose files are present and that fits "
        "this GPU, or `none`",
    )
    reference_model: str = Field(
        default="auto", description="The model of reference-to-video, as WAN_MODEL"
    )
    speech_model: str = Field(
        default="auto",
        description="The model that moves lips by the sound that is given, as WAN_MODEL",
    )
    video_sound_model: str = Field(
        default="auto", description="The model that makes frames and sound at once, as WAN_MODEL"
    )
    pool_gb: float | None = Field(
        default=None,
        gt=0,
        description="GB that the models in memory may take together, instead of what the device "
        "has. What was not used for longest is put away",
    )
    models_dir: Path = Field(
        default=Path("/runpod-volume/models"),
        description="Folder with one sub-folder a model in diffusers layout, named as in the "
        "catalogue",
    )
    cache_dir: Path = Field(
        default=Path("~/.cache/wan_engine"),
        description="Where the tiny checkpoints are kept once built, and what clips took",
    )
    lora: tuple[OwnLora, ...] = Field(
        default=(),
        description="LoRA files to fuse, as JSON: "
        '`[{"path": "/loras/a.safetensors", "scale": 0.8, "expert": "high"}]`; '
        "expert is `high`, `low` or `both`",
    )
    lora_unused: float = Field(
        default=0,
        ge=0,
        le=1,
        description="Share of a LoRA file's weights that may have no layer in the model; a file "
        "with more is refused. What is left out is logged",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="`auto`, `cuda`, `cuda:1`, `cpu`",
    )
    steps: int | None = Field(
        default=None, ge=1, le=200, description="Denoising steps, instead of the model's own"
    )
    guidance_scale: float | None = Field(
        default=None,
        ge=1,
        le=20,
        description="CFG scale of the (high-noise) expert; 1 switches CFG off",
    )
    guidance_scale_2: float | None = Field(
        default=None,
        ge=1,
        le=20,
        description="CFG scale of the low-noise expert, where there are two",
    )
    flow_shift: float | None = Field(
        default=None,
        gt=0,
        le=50,
        description="Shift of the noise schedule, instead of the model's own",
    )
