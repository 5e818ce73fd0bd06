"""Precision, placement, attention and compilation of a model on the GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field


class GpuSettings(BaseModel):
    """The recipe for this GPU. `runtime/recipes.py` chooses what you leave at `auto`."""

    precision: Literal["auto", "bfloat16", "float8"] = Field(
        default="auto",
        description="Precision of the experts' weight matrices. `auto` takes float8 with one "
        "scale per row if the GPU computes in float8 (sm89 or newer) and float8 is faster or "
        "the model does not fit otherwise; if not, `bfloat16`",
    )
    offload: Literal["auto", "none", "model", "stream", "layer"] = Field(
        default="auto",
        description="Which weights stay on the GPU. `none`: all of them. `stream`: all but the "
        "experts' blocks; each block is copied from pinned host memory while the previous one "
        "computes. `model`: one network at a time. `layer`: one layer at a time, which is "
        "slow. `auto`: the fastest that fits",
    )
    attention: Literal["auto", "native", "cudnn", "flash", "float8"] = Field(
        default="auto",
        description="Attention kernel. `native`: torch's choice. `cudnn` and `flash`: exact. "
        "`float8`: cuDNN in 8 bits, faster, but the picture changes; the worker tests its "
        "accuracy first and falls back to `cudnn`; the first and last two blocks stay exact. "
        "`auto`: `float8` on Hopper, `cudnn` on Blackwell servers, otherwise `flash`",
    )
    compile: Literal["auto", "on", "off", "required"] = Field(
        default="auto",
        description="Whether to compile the transformer blocks at first use. `auto`: if the "
        "blocks stay on a GPU. `on`: on a CPU as well. With `auto` and `on`, a failed "
        "compilation logs a warning and the blocks run uncompiled; with `required`, the start "
        "or the job fails. `off`: never",
    )
    compile_cache_dir: Path | None = Field(
        default=None,
        description="Folder that keeps compiled code for later starts. If not set, it is "
        "`compiled` next to WAN_MODELS_DIR if that folder exists, otherwise in WAN_CACHE_DIR",
    )
    step_cache: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Skips all blocks after the first in a step where the first block's output "
        "changed by less than this share (0.05 to 0.1). Faster, but the picture changes. For "
        "models with many steps; no gain at four steps",
    )
