"""Pictures of a finished clip."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from wan_engine.errors import EncodeFailed
from wan_engine.media import ffmpeg
from wan_engine.media.stills import spritesheet, thumbnail


def small_clip(path: Path) -> Path:
    """Two seconds: white, then black."""
    source = "color=white:s=64x36:r=8:d=1[a];color=black:s=64x36:r=8:d=1[b];[a][b]concat"
    command = [ffmpeg.executable(), "-loglevel", "error", "-f", "lavfi", "-i", source, str(path)]
    subprocess.run(command, check=True, timeout=60)
    return path


def test_a_thumbnail_is_the_first_frame(tmp_path: Path) -> None:
    picture = Image.open(io.BytesIO(thumbnail(small_clip(tmp_path / "clip.mp4"))))
    assert (picture.format, picture.size) == ("WEBP", (64, 36))
    assert min(low for low, _ in picture.convert("RGB").getextrema()) > 240


def test_a_sheet_has_sixteen_frames_from_all_of_the_clip(tmp_path: Path) -> None:
    sheet = Image.open(io.BytesIO(spritesheet(small_clip(tmp_path / "clip.mp4"), 2)))
    assert (sheet.format, sheet.size) == ("JPEG", (4 * 320, 4 * 180))
    grey = sheet.convert("L")
    shown = [grey.getpixel((x * 320 + 160, y * 180 + 90)) for y in range(4) for x in range(4)]
    assert [level > 128 for level in shown] == [True] * 8 + [False] * 8


def test_a_file_that_is_not_a_clip_has_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"no clip")
    with pytest.raises(EncodeFailed, match="No picture can be made of this clip"):
        thumbnail(path)
