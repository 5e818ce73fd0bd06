"""How a model is put on the GPU, and how fast it is computed there."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field


class GpuSettings(BaseModel):
    """Each is chosen for the GPU that is here, unless it is set."""

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
        description="The kernel of attention. `auto`: `float8` on Hopper, `cudnn` on Blackwell "
        "servers, else `flash`; `native`: what torch takes; `cudnn`, `flash`: exact; `float8`: "
        "cuDNN's in 8 bits, faster and not the same picture, where a test of its numbers passes, "
        "else `cudnn`. The first and last two blocks stay exact",
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
