"""Opens the clip that a new one continues: its last frames for the model, its sound, and the file
itself for the output."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from wan_engine.control import Control
from wan_engine.errors import InvalidMedia
from wan_engine.media.untrusted_videos import (
    UNDECODABLE,
    UntrustedVideo,
    VideoLimits,
    refused,
)
from wan_engine.schema import FirstClip, Frames

LEAST_SECONDS, MOST_SECONDS = 2.0, 10.0
"""The length of a first clip, as on the page of DashScope's `wan2.7-i2v`."""


@dataclass(frozen=True)
class Opened:
    """A first clip, and small frames of it, one per second, uint8 [n, h, w, 3]. `sound_lost`: it
    has a sound that cannot be decoded."""

    clip: FirstClip
    samples: Frames
    sound_lost: bool = False


def open_first_clip(
    data: bytes, folder: Path, limits: VideoLimits, control: Control, *, frames: int, fps: int
) -> Opened:
    """Open `data`, an MP4 or MOV whose file stays in `folder`. The tail has `frames` at `fps`.

    Raises `InvalidMedia`, or `EncodeFailed` if this machine is to blame.
    """
    video = UntrustedVideo(data, folder, limits, control, "first_clip")
    try:
        stream = video.open()
        times, end = _times(video)
        samples = [np.asarray(frame) for frame in video.small(1.0, round(limits.max_seconds) + 1)]
        if len(times) < 2 or not samples:
            raise refused(UNDECODABLE)
        tail = _pictures(video, tail_indices(times, frames, fps))
        if video.hdr:  # the new part is not
            raise refused("the video must have standard dynamic range, got HDR")
        begin = max(0.0, times[0])  # the output begins with the first frame
        heard = stream.heard
        sound = video.sound(limits.max_seconds, "sound", start=begin) if heard else None
    except InvalidMedia as error:
        video.source.unlink(missing_ok=True)
        raise InvalidMedia("first_clip", error.why) from error
    lost = stream.heard and sound is None
    clip = FirstClip(video.source, end - times[0], tail, sound)
    return Opened(clip, np.stack(samples), lost)


def tail_indices(times: list[float], count: int, fps: int) -> list[int]:
    """The indices of the frames that are nearest to the last `count` steps of 1 / `fps`. The last
    frame is one of them. If the file has fewer frames per second, some are repeated."""
    wanted = times[-1] - np.arange(count - 1, -1, -1) / fps
    nearest = np.abs(np.asarray(times)[:, None] - wanted).argmin(axis=0)
    return [int(index) for index in nearest]


def _times(video: UntrustedVideo) -> tuple[list[float], float]:
    """The time in seconds at which each frame is shown, and the end of the last one. All frames can
    be decoded."""
    tiny = ("-xerror", "-map", "0:V:0", "-vf", "scale=16:16:flags=fast_bilinear")
    arguments = (*tiny, "-fps_mode", "passthrough", "-pix_fmt", "gray", "-c:v", "rawvideo")
    with video.made("times", *arguments, "-f", "framecrc") as path:
        text = path.read_text("ascii", "replace")
    base = re.search(r"^#tb 0: (\d+)/(\d+)", text, re.MULTILINE)
    rows = re.findall(r"^0, +-?\d+, +(-?\d+), +(\d+),", text, re.MULTILINE)
    if base is None or not rows:
        raise refused(UNDECODABLE)
    tick = int(base[1]) / int(base[2])
    begin, lasts = rows[-1]
    return [int(begin) * tick for begin, _ in rows], (int(begin) + int(lasts)) * tick


def _pictures(video: UntrustedVideo, indices: list[int]) -> tuple[Image.Image, ...]:
    ordered = sorted(set(indices))
    picked = "+".join(f"eq(n,{index})" for index in ordered)
    pictures = video.pictures(f"select='{picked}'", len(ordered))
    return tuple(pictures[ordered.index(index)] for index in indices)
