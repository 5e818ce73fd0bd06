"""Pictures, sounds and clips: what is taken, rendered and written."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from wan_engine.settings.values import MIB

_Price = Annotated[Decimal, Field(ge=0)]
_Size = Literal["1280*720", "1920*1080"]
_PricedTask = Literal["image-to-video", "reference-to-video"]
Prices = Mapping[_Size | _PricedTask, _Price | Mapping[_Size, _Price]]


class ShapeSettings(BaseModel):
    """How large and how long a clip is rendered, beside what the request says."""

    render_area: int | None = Field(
        default=None,
        ge=1024,
        le=1920 * 1088,
        description="Largest area that is rendered, in pixels, instead of the model's own: less is "
        "faster and takes less memory, and the clip is scaled up to its size",
    )
    continuation: Literal["auto", "svi", "latents", "last_frames", "last_frame"] = Field(
        default="auto",
        description="How clips longer than the model's own length go on: `auto`: as the model's "
        "row says; `svi`: Stable Video Infinity 2.0 Pro, with its LoRA pair (A14B); `latents`: the "
        "last latents (TI2V); `last_frames`: the last five frames as a condition, with colour "
        "match and cross-fade; `last_frame`: the same with one frame, which needs fewer segments",
    )
    frame: Literal["image", "exact"] = Field(
        default="image",
        description="`image`: the picture keeps the image's shape and `size` is a pixel budget; "
        "`exact`: the image is centre-cropped to exactly `size`",
    )


class InputSettings(BaseModel):
    """What a request may bring, and how it is fetched."""

    negative_prompt: Literal["add", "replace"] = Field(
        default="add",
        description="What the request's `negative_prompt` does with the model's own text, which "
        "the model was tuned with: `add` puts it in front, `replace` leaves the model's out",
    )
    image_min_side: int = Field(
        default=240, ge=1, description="Smallest side of an image, in pixels"
    )
    image_max_side: int = Field(
        default=8000, ge=1, le=16384, description="Largest side of an image, in pixels"
    )
    image_max_bytes: int = Field(default=20 * MIB, ge=1, description="Largest image file, in bytes")
    audio_max_seconds: float = Field(default=30, gt=0, description="Longest sound, in seconds")
    audio_max_bytes: int = Field(default=15 * MIB, ge=1, description="Largest sound file, in bytes")
    reference_max_bytes: int = Field(
        default=100 * MIB, ge=1, description="Largest file of a reference video, in bytes"
    )
    reference_max_seconds: float = Field(
        default=30, ge=1, le=120, description="Longest reference video, in seconds"
    )
    reference_min_fps: float = Field(
        default=16, gt=0, le=60, description="Fewest frames a second of a reference video"
    )
    fetch_seconds: float = Field(
        default=60,
        gt=0,
        description="Wall-clock limit of one download, redirects included, in seconds",
    )
    allow_private_urls: bool = Field(
        default=False,
        description="`1` lets media be fetched from private addresses (local tests, VPC)",
    )


class OutputSettings(BaseModel):
    """What is made of the rendered frames: the mp4 and its price."""

    fps: Annotated[int, Field(ge=8, le=60)] | Literal["native"] = Field(
        default=30,
        description="Frames a second of the clip, 8 to 60; `native` keeps the model's own 16 or 24",
    )
    interpolation: Literal["auto", "rife", "mci", "blend"] = Field(
        default="auto",
        description="How frames between the model's are made: `rife` (package ccvfi and "
        "WAN_RIFE_WEIGHTS), `mci` (ffmpeg's motion compensation, on the CPU), `blend` (a mean of "
        "two frames: cheap, and moving edges are double); `auto`: the first of these that works",
    )
    rife_weights: Path | None = Field(
        default=None,
        description="RIFE's weights, the file `RIFE_IFNet_v426_heavy.pkl`; never downloaded",
    )
    upscale: Literal["auto", "lanczos", "realesrgan", "kandinsky-sr", "native"] = Field(
        default="auto",
        description="How a clip becomes larger than what the model renders: `lanczos`; "
        "`realesrgan` (package spandrel, any checkpoint of that kind); `kandinsky-sr` (a video "
        "model, in windows); `native`: the model renders the full size, outside what it was "
        "trained for. `auto`: what WAN_UPSCALE_WEIGHTS is, else `lanczos`",
    )
    upscale_weights: Path | None = Field(
        default=None,
        description="A checkpoint file for `realesrgan`, a folder in diffusers layout for "
        "`kandinsky-sr`; never downloaded",
    )
    crf: int = Field(
        default=17, ge=1, le=40, description="x264 quality: lower is better and larger"
    )
    preset: str = Field(
        default="medium",
        pattern="^(superfast|veryfast|faster|fast|medium|slow|slower|veryslow)$",
        description="x264 speed preset, `superfast` to `veryslow`",
    )
    generate_audio: bool = Field(
        default=True,
        description="What an absent `generate_audio` means at the Runpod endpoint and on the "
        "command line: `1`: a clip without a sound of the caller's has a track, with sound where "
        "WAN_SOUND_MODEL or WAN_VIDEO_SOUND_MODEL makes it, else silent; `0`: no track",
    )
    metadata: bool = Field(
        default=True,
        description='Write model, seed, version and "AI-generated" into the mp4\'s metadata',
    )
    prices: Prices = Field(
        default={},
        description="USD a second by size, as JSON, and by task where that differs: "
        '`{"1280*720": 0.05, "reference-to-video": {"1280*720": 0.08}}`. What is not given has the '
        "hosted price",
    )
