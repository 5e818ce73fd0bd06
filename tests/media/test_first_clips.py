"""Clips to continue: which frames the model gets, and what is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from tests.media.test_reference_videos import Make, ffmpeg, of_frames, video
from wan_engine.control import Control
from wan_engine.errors import InvalidMedia
from wan_engine.media.first_clips import (
    LEAST_SECONDS,
    MOST_SECONDS,
    Opened,
    open_first_clip,
    tail_indices,
)
from wan_engine.media.soundtrack import read
from wan_engine.media.untrusted_videos import VideoLimits
from wan_engine.media.video import EncodeOptions, encode
from wan_engine.schema import Plan, Segment, Shot

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
def test_the_frames_of_the_tail_are_as_far_apart_as_the_models(
    clip_fps: int, fps: int, wanted: list[int]
) -> None:
    times = [index / clip_fps for index in range(2 * clip_fps)]
    indices = tail_indices(times, 5, fps)
    assert indices[-1] == wanted[-1] == len(times) - 1
    assert all(abs(index - one) <= 1 for index, one in zip(indices, wanted, strict=True))
    assert indices == sorted(indices)


def test_frames_of_uneven_length_are_chosen_by_their_times() -> None:
    times = [0.0, 0.5, 1.0, 1.9, 1.94, 2.0]
    assert tail_indices(times, 3, 16) == [3, 4, 5]


def test_the_last_frame_of_the_file_is_the_last_of_the_tail(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (320, 240), (0, 4 * index, 0)) for index in range(60)]
    clip = opened(of_frames(tmp_path, frames, fps=30), tmp_path).clip
    greens = [int(np.asarray(picture)[120, 160, 1]) for picture in clip.tail]
    assert greens == pytest.approx([4 * index for index in (51, 53, 55, 57, 59)], abs=8)
    assert clip.seconds == pytest.approx(2.0, abs=0.001)
    assert clip.sound is None and clip.path.exists()


def test_one_frame_per_second_is_checked_for_safety(video: Make, tmp_path: Path) -> None:
    found = opened(video("looked.mp4", seconds=4.0), tmp_path)
    assert len(found.samples) in (4, 5)


def test_hdr_is_refused_because_the_new_part_is_not_hdr(video: Make, tmp_path: Path) -> None:
    tags = "setparams=colorspace=bt2020nc:color_primaries=bt2020:color_trc=smpte2084"
    data = video("hdr.mp4", "-vf", f"scale=out_color_matrix=bt2020,{tags}", seconds=2.0)
    with pytest.raises(InvalidMedia) as caught:
        opened(data, tmp_path)
    assert caught.value.why == "the video must have standard dynamic range, got HDR"
    assert list(tmp_path.iterdir()) == []


def test_sound_before_a_late_first_frame_is_cut(video: Make, tmp_path: Path) -> None:
    picture, late = tmp_path / "picture.mp4", tmp_path / "late.mp4"
    picture.write_bytes(video("picture.mp4", seconds=2.0))
    tone = ("-f", "lavfi", "-i", "aevalsrc='if(lt(t,1),0,sin(2000*PI*t))/2':s=48000:d=3")
    both = ("-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", "pcm_s16le")
    ffmpeg("-itsoffset", "1", "-i", str(picture), *tone, *both, "-f", "mov", str(late))
    folder = tmp_path / "job"
    folder.mkdir()
    sound = opened(late.read_bytes(), folder).clip.sound
    assert sound is not None and sound.seconds == pytest.approx(2.0, abs=0.05)
    assert np.abs(read(sound)[:4800]).mean() > 1000  # it is heard from the first frame on


def test_a_sound_that_cannot_be_decoded_is_reported(video: Make, tmp_path: Path) -> None:
    sine = ("-f", "lavfi", "-i", "sine=1000:d=2")
    picture, both = tmp_path / "picture.mp4", tmp_path / "both.mp4"
    picture.write_bytes(video("picture.mp4", seconds=2.0))
    ffmpeg("-i", str(picture), *sine, "-c:v", "copy", "-c:a", "flac", "-strict", "-2", str(both))
    folder = tmp_path / "job"
    folder.mkdir()
    found = opened(both.read_bytes(), folder)
    assert found.sound_lost and found.clip.sound is None
    assert not opened(picture.read_bytes(), folder).sound_lost


def test_extreme_pixel_aspects_fill_no_memory(video: Make, tmp_path: Path) -> None:
    wide = video("wide.mp4", "-vf", "setsar=1000/1", seconds=2.0, size="2048x1152", fps=16)
    clip = opened(wide, tmp_path).clip
    assert clip.tail[-1].size == (4096, 1152)
    plan = Plan(
        **{"width": 256, "height": 72, "render_width": 256, "render_height": 80},
        **{"crop_width": 256, "crop_height": 72, "fps": 16, "frames": 33, "seed": 1},
        shots=(Shot("x", (Segment(1, 1, 0, 1),), 1),),
        source_fps=16,
        given_frames=32,
    )
    frames = iter([np.zeros((1, 80, 256, 3), np.uint8)])
    options, path = EncodeOptions(preset="ultrafast"), tmp_path / "out.mp4"
    assert encode(frames, plan, None, path, options, Control(), after=clip).frames == 33


def test_damage_at_the_end_is_found_before_the_render(video: Make, tmp_path: Path) -> None:
    data = bytearray(video("whole.mp4", "-g", "1", seconds=2.4))
    at = data.index(b"mdat")
    data[at + 4 + (len(data) - at) // 2 : at + 4 + (len(data) - at) // 2 + 4000] = b"\xff" * 4000
    with pytest.raises(InvalidMedia) as caught:
        opened(bytes(data), tmp_path)
    assert caught.value.field == "first_clip"
    assert list(tmp_path.iterdir()) == []


def test_a_long_last_frame_counts_with_its_length(video: Make, tmp_path: Path) -> None:
    held = "setpts='if(lt(N,49),N/25/TB,2.6/TB)'"  # 49 frames, then one at 2.6 s
    source = tmp_path / "held.mp4"
    source.write_bytes(video("plain.mp4", seconds=2.0))
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(source), "-vf", held]
    command += ["-fps_mode", "passthrough", "-c:v", "libx264", str(tmp_path / "made.mp4")]
    subprocess.run(command, check=True)
    clip = opened((tmp_path / "made.mp4").read_bytes(), tmp_path).clip
    assert clip.seconds == pytest.approx(2.64, abs=0.05)
