"""Clips to continue: which of their frames are the tail, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.media.test_reference_videos import Make, of_frames, video
from wan_engine.control import Control
from wan_engine.errors import InvalidMedia
from wan_engine.media.first_clips import (
    LEAST_SECONDS,
    MOST_SECONDS,
    Opened,
    open_first_clip,
    tail_indices,
)
from wan_engine.media.untrusted_videos import VideoLimits

__all__ = ["video"]

LIMITS = VideoLimits(240, LEAST_SECONDS, MOST_SECONDS, 16)


def opened(data: bytes, folder: Path, frames: int = 5, fps: int = 16) -> Opened:
    return open_first_clip(data, folder, LIMITS, Control(), frames=frames, fps=fps)


@pytest.mark.parametrize(
    ("clip_fps", "fps", "wanted"),
    [
        (16, 16, [27, 28, 29, 30, 31]),
        (32, 16, [55, 57, 59, 61, 63]),
        (30, 16, [51, 53, 55, 57, 59]),
        (24, 24, [43, 44, 45, 46, 47]),
        (16, 24, [28, 29, 30, 30, 31]),
        (240, 16, [419, 434, 449, 464, 479]),
    ],
)
def test_the_tail_is_as_far_apart_as_the_models_frames(
    clip_fps: int, fps: int, wanted: list[int]
) -> None:
    times = [index / clip_fps for index in range(2 * clip_fps)]
    indices = tail_indices(times, 5, fps)
    assert indices[-1] == wanted[-1] == len(times) - 1
    assert all(abs(index - one) <= 1 for index, one in zip(indices, wanted, strict=True))
    assert indices == sorted(indices)


def test_frames_of_uneven_length_are_taken_by_their_times() -> None:
    times = [0.0, 0.5, 1.0, 1.9, 1.94, 2.0]
    assert tail_indices(times, 3, 16) == [3, 4, 5]


def test_the_last_frame_of_the_file_is_the_last_of_the_tail(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (320, 240), (0, 4 * index, 0)) for index in range(60)]
    clip = opened(of_frames(tmp_path, frames, fps=30), tmp_path).clip
    greens = [int(np.asarray(picture)[120, 160, 1]) for picture in clip.tail]
    assert greens == pytest.approx([4 * index for index in (51, 53, 55, 57, 59)], abs=8)
    assert clip.seconds == pytest.approx(2.0, abs=0.001)
    assert clip.sound is None and clip.path.exists()


def test_it_is_looked_at_once_a_second(video: Make, tmp_path: Path) -> None:
    found = opened(video("looked.mp4", seconds=4.0), tmp_path)
    assert len(found.samples) in (4, 5)


def test_hdr_is_refused_since_the_new_part_is_not(video: Make, tmp_path: Path) -> None:
    tags = "setparams=colorspace=bt2020nc:color_primaries=bt2020:color_trc=smpte2084"
    data = video("hdr.mp4", "-vf", f"scale=out_color_matrix=bt2020,{tags}", seconds=2.0)
    with pytest.raises(InvalidMedia) as caught:
        opened(data, tmp_path)
    assert caught.value.why == "the video must have standard dynamic range, got HDR"
    assert list(tmp_path.iterdir()) == []


def test_damage_at_the_end_is_found_before_the_render(video: Make, tmp_path: Path) -> None:
    data = bytearray(video("whole.mp4", "-g", "1", seconds=2.4))
    at = data.index(b"mdat")
    data[at + 4 + (len(data) - at) // 2 : at + 4 + (len(data) - at) // 2 + 4000] = b"\xff" * 4000
    with pytest.raises(InvalidMedia) as caught:
        opened(bytes(data), tmp_path)
    assert caught.value.field == "first_clip"
    assert list(tmp_path.iterdir()) == []
