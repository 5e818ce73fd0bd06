"""Scratch space, time limits, progress and log of jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field


class JobSettings(BaseModel):
    """The limits of a job, and how a worker reports on it."""

    scratch_dir: Path | None = Field(
        default=None, description="Folder for temporary files of jobs. If not set, the system's own"
    )
    scratch_min_gb: float = Field(
        default=2.0,
        ge=0,
        description="Free space that a job needs in WAN_SCRATCH_DIR to start, in GB",
    )
    job_seconds: float | None = Field(
        default=None,
        gt=0,
        description="Time limit of a job, in seconds. If not set, ten times what the last "
        "similar clip took, and at least 6 times WAN_HANG_SECONDS. Before the first such clip, at "
        "least 24 times WAN_HANG_SECONDS for each segment",
    )
    hang_seconds: float = Field(
        default=300,
        ge=1,
        description="Time without progress after which a job counts as hung, in seconds; its "
        "process is then killed. Loading gets 6 times as long, a compiled step 3 times, an "
        "offloaded layer 12 times",
    )
    prefetch: bool = Field(
        default=False,
        description="`1`: a Runpod worker takes a second job while it renders the first. One "
        "job's downloads and the other's upload then overlap with a render. Use it if your "
        "workers are always busy: the second job waits even if another worker is idle, its "
        "wait counts against WAN_JOB_SECONDS and the endpoint's execution timeout, and both "
        "jobs are lost if the worker dies",
    )
    previews: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Small moving pictures of the unfinished clip. `auto`: only while somebody "
        "looks, on the page of a gateway that renders on this machine. `on`: a Runpod worker adds "
        "them to its progress too, about 15 kB each, for its callers and the page of a gateway. "
        "`off`: none",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO",
        description="Lowest level of messages in the log: `DEBUG`, `INFO`, `WARNING` or `ERROR`",
    )
