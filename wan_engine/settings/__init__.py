"""Every setting of the engine. `environment.py` reads the rest. Nothing happens at import.

The README's table is made from the fields below (`python -m wan_engine settings`), so each has a
description.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import SettingsConfigDict

from wan_engine.errors import ConfigurationError
from wan_engine.settings.gateway import MIB, GatewaySettings
from wan_engine.settings.values import BaseUrl, Key, Url, cleaned, url

VERSION = "0.1.0"
"""The version of this package, as `--version`, logs and the mp4's metadata name it."""

_OURS = "Value error, "  # what pydantic puts before our words


class Lora(BaseModel):
    """A LoRA file of the operator's own, fused into the experts when the model is loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    scale: float = Field(default=1.0, allow_inf_nan=False)
    expert: Literal["high", "low", "both"] = "both"


class Settings(GatewaySettings):
    """Read with `Settings.load()`; in tests and from Python, `Settings(model="wan-tiny", ...)`."""

    model_config = SettingsConfigDict(
        env_prefix="WAN_",
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        env_ignore_empty=True,
        hide_input_in_errors=True,  # it may be a key
        enable_decoding=False,
    )

    # the model
    model: str = Field(
        default="auto",
        description="A catalogue name or a Hub id in diffusers layout, both with or without "
        "`@revision`, or a folder, or `auto`: the best model whose files are present and that fits "
        "this GPU",
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
    lora: tuple[Lora, ...] = Field(
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
    precision: Literal["auto", "bfloat16", "float8"] = Field(
        default="auto",
        description="Of the experts' matrices. `auto`: float8 with a scale a row where the GPU "
        "computes in it (sm89 and newer) and it is faster or needed to fit, else `bfloat16`",
    )
    offload: Literal["auto", "none", "model", "stream", "layer"] = Field(
        default="auto",
        description="What stays on the GPU. `none`: everything; `stream`: all but the experts' "
        "blocks, each copied from pinned host memory while the one before it works; `model`: one "
        "network at a time; `layer`: one layer at a time, slow. `auto`: the fastest that fits",
    )
    attention: Literal["auto", "native", "cudnn", "flash", "float8"] = Field(
        default="auto",
        description="The kernel of attention. `auto`: cuDNN's on Hopper and Blackwell servers, "
        "else flash attention; `native`: what torch takes; `float8`: cuDNN's in 8 bits (package "
        "nvidia-cudnn-frontend, sm90), after a test of its numbers: faster, and not the same "
        "picture",
    )
    compile: Literal["auto", "on", "off", "required"] = Field(
        default="auto",
        description="Compile the transformers' blocks when they are first used. `auto`: where they "
        "stay on a GPU; `on`: on a CPU too. Where compiling fails they run as they are, with a "
        "warning; `required`: nothing starts, or the job fails",
    )
    compile_cache_dir: Path | None = Field(
        default=None,
        description="Where compiled code is kept for later starts; a folder `compiled` beside "
        "WAN_MODELS_DIR where that is there, else in WAN_CACHE_DIR",
    )
    step_cache: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="For many steps: leave the blocks after the first one out of a step in which "
        "that one's output changed by less than this share (0.05 to 0.1). Faster, and not the same "
        "picture; without use at four steps",
    )
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

    # what comes in
    frame: Literal["image", "exact"] = Field(
        default="image",
        description="`image`: the picture keeps the image's shape and `size` is a pixel budget; "
        "`exact`: the image is centre-cropped to exactly `size`",
    )
    prompt_backend: Literal["auto", "openai", "transformers", "template"] = Field(
        default="auto",
        description="What expands prompts: `openai` asks the server at WAN_PROMPT_URL, "
        "`transformers` runs WAN_PROMPT_MODEL here, `template` adds fixed phrases; `auto`: the "
        "first of them that this machine has",
    )
    prompt_url: Url | None = Field(
        default=None,
        description="Base URL of an OpenAI-compatible server, such as `http://127.0.0.1:8000/v1`",
    )
    prompt_api_key: Key | None = Field(default=None, description="Its key", repr=False)
    prompt_model: str = Field(
        default="qwen3-vl-4b",
        description="The model that expands prompts: `qwen3-vl-4b`, a folder or Hub id of the "
        "Qwen-VL kind, or the server's name for it",
    )
    prompt_seconds: float = Field(
        default=30, gt=0, le=600, description="Time limit of an answer, in seconds"
    )
    safety: Literal["auto", "required", "off"] | None = Field(
        default=None,
        description="`auto`: use the safety classifiers that are present and say so in the result "
        "when one is missing; `required`: refuse to start without them; `off`: never check. Not "
        "set, it is `auto`, and `required` in the Runpod loop",
    )
    safety_prompt_model: str = Field(
        default="qwen3guard-gen-0.6b",
        description="The prompt guard: a catalogue name, a folder or a Hub id of the "
        "Qwen3Guard-Gen kind",
    )
    safety_image_model: str = Field(
        default="nsfw-image-detection",
        description="The classifier of images and frames: a catalogue name, or a folder or Hub id "
        "of any transformers image classifier",
    )
    safety_image_labels: Mapping[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        default={},
        description="Labels of that classifier that are flagged, each from which probability on, "
        'as JSON: `{"nsfw": 0.6}`; instead of those in the catalogue',
    )
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
    fetch_seconds: float = Field(
        default=60,
        gt=0,
        description="Wall-clock limit of one download, redirects included, in seconds",
    )
    allow_private_urls: bool = Field(
        default=False,
        description="`1` lets media be fetched from private addresses (local tests, VPC)",
    )

    # what goes out
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
    metadata: bool = Field(
        default=True,
        description='Write model, seed, version and "AI-generated" into the mp4\'s metadata',
    )
    prices: Mapping[Literal["1280*720", "1920*1080"], Annotated[Decimal, Field(ge=0)]] = Field(
        default={},
        description="USD a second by size, as JSON; a size that is not given has the hosted price",
    )
    storage: Literal["auto", "s3", "local"] = Field(
        default="auto",
        description="`auto`: S3 when the bucket is set, else the local folder; in the Runpod loop "
        "a missing bucket refuses to start unless this says `local`",
    )
    output_dir: Path = Field(
        default=Path("outputs"), description="Where clips go when no bucket is set"
    )
    bucket_endpoint_url: Url | None = Field(
        default=None,
        validation_alias=AliasChoices("BUCKET_ENDPOINT_URL"),
        description="Object storage endpoint, with or without the bucket in it",
    )
    bucket_access_key_id: Key | None = Field(
        default=None,
        validation_alias=AliasChoices("BUCKET_ACCESS_KEY_ID"),
        description="Its access key",
        repr=False,
    )
    bucket_secret_access_key: Key | None = Field(
        default=None,
        validation_alias=AliasChoices("BUCKET_SECRET_ACCESS_KEY"),
        description="Its secret key",
        repr=False,
    )
    bucket_name: Key | None = Field(
        default=None,
        validation_alias=AliasChoices("BUCKET_NAME"),
        description="Bucket, where the endpoint does not name it",
    )
    s3_region: Key | None = Field(
        default=None, description="Region, where the endpoint does not tell it"
    )
    s3_addressing: Literal["auto", "path", "virtual"] = Field(
        default="auto", description="How the bucket is addressed: in the path, or as a virtual host"
    )
    s3_prefix: str = Field(default="", description="First part of every key in the bucket")
    public_base_url: BaseUrl | None = Field(
        default=None,
        description="Give `<this>/<key>` as the URL instead of a signed one, for a public bucket",
    )
    spool_dir: Path | None = Field(
        default=None,
        description="Folder that outlives the worker, such as a network volume: finished clips "
        "wait there while the bucket is away",
    )
    keep_days: float = Field(
        default=7, gt=0, description="How long the spool folder keeps a clip, in days"
    )

    # the job
    scratch_dir: Path | None = Field(
        default=None, description="Where job folders are made; the system's default"
    )
    scratch_min_gb: float = Field(
        default=2.0, ge=0, description="Free space there below which no job is begun, in GB"
    )
    job_seconds: float | None = Field(
        default=None, gt=0, description="A job that runs longer fails; else 10 times the last one"
    )
    hang_seconds: float = Field(
        default=300,
        ge=1,
        description="A job without a sign of life for so long hangs, and its process is ended; "
        "loads have 6 times as long, compiled steps 3, offloaded layers 12",
    )
    prefetch: bool = Field(
        default=False,
        description="`1`: a Runpod worker takes a second job while it renders the first, so that "
        "the downloads of one and the upload of the other run beside a render. It costs: the "
        "second job waits here where another worker may be idle, its wait counts against "
        "WAN_JOB_SECONDS and the endpoint's execution timeout, and a worker that dies takes both "
        "with it. For endpoints whose workers are always busy",
    )
    progress_seconds: float = Field(
        default=2,
        ge=0,
        description="Smallest gap between two progress updates to Runpod, in seconds",
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="What is logged"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _clean(cls, value: object, info: ValidationInfo) -> object:
        name = str(info.field_name)
        several = isinstance(cls.model_fields[name].default, tuple | dict)  # a line each, perhaps
        return cleaned(value, env_name(name), lines=several)

    @field_validator("lora", "safety_image_labels", "prices", mode="before")
    @classmethod
    def _json(cls, value: object) -> object:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError:
            raise ValueError("it must be JSON") from None

    @classmethod
    def load(cls) -> Settings:
        """The settings of this process. Raises `ConfigurationError` naming each variable that is
        wrong."""
        try:
            _check_hub()
            return cls()
        except ValidationError as error:
            wrong = [
                f"{env_name(str(one['loc'][0]))} is wrong: {one['msg'].removeprefix(_OURS)}."
                for one in error.errors(include_url=False)
            ]
            raise ConfigurationError(f"{' '.join(wrong)} README lists what it takes.") from None

    @property
    def has_bucket(self) -> bool:
        """The three variables that decide whether S3 is used (Runpod's own names)."""
        keys = (self.bucket_endpoint_url, self.bucket_access_key_id, self.bucket_secret_access_key)
        return all(keys)


def _check_hub() -> None:
    """HF_ENDPOINT is the Hub's client's own; it fails in the middle of a download. Raises
    `ConfigurationError`."""
    try:
        if endpoint := os.environ.get("HF_ENDPOINT"):
            url(endpoint)
    except ValueError as error:
        raise ConfigurationError(f"HF_ENDPOINT is wrong: {error}.") from None


@dataclass(frozen=True)
class Described:
    """A setting as the README's table shows it."""

    variable: str
    default: str
    meaning: str


def described() -> list[Described]:
    """Every setting, in the order of the fields, the gateway's last."""
    rows = []
    gateways = GatewaySettings.model_fields
    own = {name: field for name, field in Settings.model_fields.items() if name not in gateways}
    for name, field in (own | gateways).items():
        default = field.default
        shown = "" if default in (None, (), {}, "") else str(default)
        shown = ",".join(default) if isinstance(default, tuple) and shown else shown
        rows.append(Described(env_name(name), shown, field.description or ""))
    return rows


def env_name(field: str) -> str:
    """The environment variable of a field of `Settings`."""
    if field.isupper():
        return field
    return field.upper() if field.startswith("bucket_") else f"WAN_{field.upper()}"
