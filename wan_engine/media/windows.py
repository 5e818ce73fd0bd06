"""Reads a window of a finished clip, at a smaller size and another fps, for a model that makes its
sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wan_engine.control import Control
from wan_engine.media import ffmpeg
from wan_engine.schema import Frames


def read_window(
    path: Path, size: tuple[int, int], fps: int, first: int, count: int, control: Control
) -> Frames:
    """Read `count` frames of the clip at `path`, from frame `first` at `fps`: uint8 [count, height,
    width, 3]. The picture fills `size` and is cropped to it. After the end of the clip, its last
    frame repeats.

    Raises `ffmpeg.Failed`, or the errors of `control`.
    """
    width, height = size
    raw = path.with_suffix(".window.rgb")
    filters = (
        f"fps={fps}:start_time=0,"
        f"scale={width}:{height}:force_original_aspect_ratio=increase:flags=bicubic,"
        f"crop={width}:{height},tpad=stop_mode=clone:stop={count},"
        f"trim=start_frame={first}:end_frame={first + count},setpts=PTS-STARTPTS"
    )
    arguments = [
        *("-nostdin", "-protocol_whitelist", "file", "-f", "mov", "-i", str(path)),
        *("-map", "0:v:0", "-vf", filters, "-frames:v", str(count)),
        *("-pix_fmt", "rgb24", "-f", "rawvideo", "-y", str(raw)),
    ]
    try:
        with ffmpeg.running(arguments, control):
            pass
        frames = np.fromfile(raw, np.uint8)
    finally:
        raw.unlink(missing_ok=True)
    if frames.size != count * height * width * 3:
        raise ffmpeg.Failed(f"{frames.size} bytes came for {count} frames", here=True)
    return frames.reshape(count, height, width, 3)
