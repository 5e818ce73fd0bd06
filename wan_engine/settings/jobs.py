"""What a job may use and how long it may take, and what is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field


class JobSettings(BaseModel):
    """Scratch space, time limits, a worker's turns, the log."""

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
