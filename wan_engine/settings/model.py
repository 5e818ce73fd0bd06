"""The models, their folders and LoRA files, and their sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class OwnLora(BaseModel):
    """A LoRA file that WAN_LORA names. It is fused into the experts when the model is loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    scale: float = Field(default=1.0, allow_inf_nan=False)
    expert: Literal["high", "low", "both"] = "both"


class ModelSettings(BaseModel):
    """Models and their folders. The numbers replace those of the catalogue."""

    model: str = Field(
        default="auto",
        description="The model of image-to-video: a catalogue name or a Hub id in "
        "diffusers layout (both may have `@revision`), a folder, `auto` or `none`. `auto` "
        "takes the first model of the catalogue that is here and fits this GPU: four steps come "
        "before 40",
    )
    reference_model: str = Field(
        default="auto", description="The model of reference-to-video. Same values as WAN_MODEL"
    )
    speech_model: str = Field(
        default="auto",
        description="The model that moves lips to the caller's audio. Same values as WAN_MODEL",
    )
    sound_model: str = Field(
        default="auto",
        description="The model that makes the sound of a finished clip. Same values as "
        "WAN_MODEL. `auto` never takes a model whose licence is not verified; set its name to "
        "use it",
    )
    video_sound_model: str = Field(
        default="auto",
        description="The model that makes video and sound together. Same values as WAN_MODEL. The "
        "catalogue has none yet; you can name a row of another package",
    )
    pool_gb: float | None = Field(
        default=None,
        gt=0,
        description="GB that all loaded models may use together. If not set, all memory of the "
        "device. The least recently used model is unloaded first",
    )
    models_dir: Path = Field(
        default=Path("/runpod-volume/models"),
        description="Folder with one subfolder per model in diffusers layout. A subfolder has "
        "the model's name in the catalogue",
    )
    cache_dir: Path = Field(
        default=Path("~/.cache/wan_engine"),
        description="Folder for the tiny checkpoints that the worker builds, and for the render "
        "times that it measured",
    )
    lora: tuple[OwnLora, ...] = Field(
        default=(),
        description="LoRA files to fuse into WAN_MODEL, as JSON: "
        '`[{"path": "/loras/a.safetensors", "scale": 0.8, "expert": "high"}]`. `expert` is '
        "`high`, `low` or `both`",
    )
    lora_dir: Path | None = Field(
        default=None,
        description="Folder of LoRA files that a request may name in `loras`, such as "
        "`/runpod-volume/loras`. If not set, requests cannot name LoRA files",
    )
    lora_unused: float = Field(
        default=0,
        ge=0,
        le=1,
        description="Share of a LoRA file's weights that may match no layer of the model, 0 to "
        "1. The start fails if more do not match. The log names the weights that were skipped",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="`auto`, `cuda`, `cuda:1` or `cpu`",
    )
    steps: int | None = Field(
        default=None,
        ge=1,
        le=200,
        description="Number of denoising steps of WAN_MODEL. If not set, the model's own",
    )
    guidance_scale: float | None = Field(
        default=None,
        ge=1,
        le=20,
        description="CFG scale of WAN_MODEL, or of its high-noise expert if it has two. 1 "
        "disables CFG",
    )
    guidance_scale_2: float | None = Field(
        default=None,
        ge=1,
        le=20,
        description="CFG scale of the low-noise expert of WAN_MODEL, if it has two experts",
    )
    flow_shift: float | None = Field(
        default=None,
        gt=0,
        le=50,
        description="Shift of the noise schedule of WAN_MODEL. If not set, the model's own",
    )
