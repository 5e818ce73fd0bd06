"""A clip of the real command line, examined by ffprobe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.system


def render(target: Path, data: Path, tiny_cache: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "wan_engine", "generate", "--prompt", "lift-off"]
    subprocess.run(
        [*command, "--out", str(target), *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "WAN_CACHE_DIR": str(tiny_cache), "WAN_MODEL": "wan-tiny"},
        check=True,
        capture_output=True,
    )


def probe(path: Path) -> dict[str, Any]:
    command = ["ffprobe", "-v", "error", "-of", "json", "-show_format", "-show_streams"]
    done = subprocess.run([*command, str(path)], check=True, capture_output=True, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_a_clip_with_sound(tmp_path: Path, data: Path, tiny_cache: Path) -> None:
    image, audio = data / "rocket_640x360.jpg", data / "chime_4s.mp3"
    target = tmp_path / "clip.mp4"
    render(target, data, tiny_cache, "--image", str(image), "--audio", str(audio))
    report = probe(target)
    video, sound = report["streams"]
    assert (video["codec_name"], video["profile"], video["pix_fmt"]) == ("h264", "High", "yuv420p")
    assert (video["width"], video["height"]) == (1280, 720)
    assert (video["nb_frames"], video["r_frame_rate"]) == ("150", "30/1")
    colours = ("color_space", "color_primaries", "color_transfer", "color_range")
    assert [video[name] for name in colours] == ["bt709", "bt709", "bt709", "tv"]
    assert (sound["codec_name"], sound["sample_rate"], sound["channels"]) == ("aac", "48000", 2)
    for part in (video, sound, report["format"]):
        assert float(part["duration"]) == 5.0
    assert report["format"]["tags"]["comment"].startswith("AI-generated video; model wan-tiny")


def test_a_clip_without_a_track_has_one_stream(
    tmp_path: Path, data: Path, tiny_cache: Path
) -> None:
    target = tmp_path / "clip.mp4"
    image = str(data / "astronaut_360x480.png")
    render(target, data, tiny_cache, "--image", image, "--size", "1080p", "--no-generate-audio")
    (video,) = probe(target)["streams"]
    assert (video["width"], video["height"]) == (1248, 1662)
