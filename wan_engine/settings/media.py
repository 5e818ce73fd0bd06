"""Limits on the media of requests, and size, frame rate and encoding of clips."""

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
    """Size of the render, and how long clips are continued."""

    render_area: int | None = Field(
        default=None,
        ge=1024,
        le=1920 * 1088,
        description="Largest area to render, in pixels. If not set, the model's own. A smaller "
        "area is faster and needs less memory; the clip is then scaled up to its size",
    )
    continuation: Literal["auto", "svi", "latents", "last_frames", "last_frame"] = Field(
        default="auto",
        description="How WAN_MODEL continues a clip past the length that it was trained on. "
        "`auto`: as the catalogue says for the model. `svi`: Stable Video Infinity 2.0 Pro "
        "with its LoRA pair (A14B). `latents`: from the last latents (TI2V). `last_frames`: "
        "from the last five frames, with colour match and cross-fade. `last_frame`: from the "
        "last frame, with colour match and cross-fade; needs fewer segments",
    )
    frame: Literal["image", "exact"] = Field(
        default="image",
        description="`image`: the clip keeps the aspect ratio of the image, and `size` is a "
        "pixel budget. `exact`: the image is centre-cropped to exactly `size`",
    )


class InputSettings(BaseModel):
    """Limits on the media of a request, and on their download."""

    negative_prompt: Literal["add", "replace"] = Field(
        default="add",
        description="How the request's `negative_prompt` is combined with the text that the "
        "model was tuned with: `add` puts it before that text, `replace` uses it alone",
    )
    image_min_side: int = Field(
        default=240, ge=1, description="Shortest allowed side of an image, in pixels"
    )
    image_max_side: int = Field(
        default=8000, ge=1, le=16384, description="Longest allowed side of an image, in pixels"
    )
    image_max_bytes: int = Field(
        default=20 * MIB, ge=1, description="Largest allowed image file, in bytes"
    )
    audio_max_seconds: float = Field(
        default=30, gt=0, description="Longest allowed audio, in seconds"
    )
    audio_max_bytes: int = Field(
        default=15 * MIB, ge=1, description="Largest allowed audio file, in bytes"
    )
    reference_max_bytes: int = Field(
        default=100 * MIB,
        ge=1,
        description="Largest allowed reference video or first clip, in bytes",
    )
    reference_max_seconds: float = Field(
        default=30, ge=1, le=120, description="Longest allowed reference video, in seconds"
    )
    fetch_seconds: float = Field(
        default=60,
        gt=0,
        description="Time limit of one download with its redirects, in seconds",
    )
    allow_private_urls: bool = Field(
        default=False,
        description="`1` allows downloads of media from private addresses, for local tests or a "
        "VPC",
    )


class OutputSettings(BaseModel):
    """Frame rate, enlargement, encoding and price of the clip."""

    fps: Annotated[int, Field(ge=8, le=60)] | Literal["native"] = Field(
        default=30,
        description="Frame rate of the clip, 8 to 60 frames per second. `native` keeps the "
        "model's own rate of 16 or 24",
    )
    interpolation: Literal["auto", "rife", "mci", "blend"] = Field(
        default="auto",
        description="How to make the frames between the model's. `rife`: RIFE (package ccvfi "
        "and WAN_RIFE_WEIGHTS). `mci`: ffmpeg's motion compensation, on the CPU. `blend`: the "
        "mean of two frames, which is fast but doubles moving edges. `auto`: `rife` "
        "if WAN_RIFE_WEIGHTS is set, otherwise `mci`, or `blend` if this ffmpeg has no motion "
        "compensation",
    )
    rife_weights: Path | None = Field(
        default=None,
        description="RIFE's weights, the file `RIFE_IFNet_v426_heavy.pkl`. It is never downloaded",
    )
    upscale: Literal["auto", "lanczos", "realesrgan", "kandinsky-sr", "native"] = Field(
        default="auto",
        description="How to enlarge a clip past the size that the model renders. `lanczos`: "
        "ffmpeg's filter. `realesrgan`: any checkpoint that the package spandrel reads. "
        "`kandinsky-sr`: a video model, in windows of frames. `native`: the model renders the "
        "full size, which it was not trained for. `auto`: the network in WAN_UPSCALE_WEIGHTS "
        "if it is set, otherwise `lanczos`",
    )
    upscale_weights: Path | None = Field(
        default=None,
        description="A checkpoint file for `realesrgan`, or a folder in diffusers layout for "
        "`kandinsky-sr`. It is never downloaded",
    )
    crf: int = Field(
        default=17,
        ge=1,
        le=40,
        description="x264 quality (CRF). A lower value gives better quality and a larger file",
    )
    preset: str = Field(
        default="medium",
        pattern="^(superfast|veryfast|faster|fast|medium|slow|slower|veryslow)$",
        description="x264 speed preset, `superfast` to `veryslow`",
    )
    generate_audio: bool = Field(
        default=True,
        description="Whether a clip without the caller's audio gets a sound track if its "
        "request has no `generate_audio`, on the Runpod endpoint and the command line. `1`: "
        "it gets one, with the sound of WAN_SOUND_MODEL or WAN_VIDEO_SOUND_MODEL if one is "
        "configured, otherwise silent. `0`: no track",
    )
    metadata: bool = Field(
        default=True,
        description='Write the model, the seed, the version and "AI-generated" into the '
        "metadata of the mp4",
    )
    prices: Prices = Field(
        default={},
        description="Prices in USD per second by size, as JSON, and by task if they differ: "
        '`{"1280*720": 0.05, "reference-to-video": {"1280*720": 0.08}}`. Sizes that you leave '
        "out cost the hosted price",
    )
