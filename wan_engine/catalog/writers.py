"""Lists the models that expand prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class WriterSpec:
    """A vision-language model that expands prompts. `is_toy`: it is written on this machine
    instead of downloaded. `resident_gb`: GPU memory with one answer in progress."""

    name: str
    title: str
    repo: str | None = None
    revision: str | None = None
    is_toy: bool = False
    licence: str = "Apache-2.0"
    download_gb: float = 0.0
    resident_gb: float = 0.0


_WRITER_ROWS = (
    WriterSpec(
        name="qwen3-vl-4b",
        title="Qwen3-VL 4B Instruct: sees the image",
        repo="Qwen/Qwen3-VL-4B-Instruct",
        revision="ebb281ec70b05090aa6165b016eac8ec08e71b17",
        download_gb=8.9,  # 4.44 billion parameters in bfloat16
        resident_gb=11.0,  # plus up to 2 GB for 2000 tokens and the image; not measured
    ),
)

WRITERS: Mapping[str, WriterSpec] = {row.name: row for row in _WRITER_ROWS}
"""The models for `WAN_PROMPT_MODEL`, by name."""
