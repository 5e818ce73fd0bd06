"""The contact sheet: it shows the frames that its labels say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wan_engine.control import Control
from wan_engine.errors import EncodeFailed
from wan_engine.media.sheet import SheetFrame, choose_frames, write_sheet
from wan_engine.media.video import EncodeOptions, encode
from wan_engine.schema import Plan, Segment, Shot


def brightening(path: Path, count: int, width: int, height: int) -> None:
    """A clip whose frame n has the level 5 n everywhere."""
    segment = Segment(1, count, 0, count)
    shots = (Shot("", (segment,), count),)
    plan = Plan(width, height, width, height, width, height, 10, count, 1, shots, 10)
    levels = (5 * np.arange(count, dtype=np.uint8)).reshape(-1, 1, 1, 1)
    frames = np.broadcast_to(levels, (count, height, width, 3)).copy()
    encode([frames], plan, None, path, EncodeOptions(crf=1), Control())


def test_the_sheet_shows_two_frames_per_second_and_the_last_one_and_both_at_each_cut() -> None:
    shown = choose_frames(frames=60, fps=30, cut_seconds=[1.2])
    assert [frame.number for frame in shown] == [0, 15, 30, 35, 36, 45, 59]
    assert [frame.number for frame in shown if frame.is_cut] == [36]


@pytest.mark.parametrize(("width", "height"), [(320, 180), (180, 320)])
def test_the_sheet_has_the_frames_that_its_labels_name(
    tmp_path: Path, width: int, height: int
) -> None:
    clip, target = tmp_path / "clip.mp4", tmp_path / "sheet.png"
    brightening(clip, 40, width, height)
    numbers = [0, 3, 9, 10, 20, 30, 39]
    write_sheet(clip, [SheetFrame(number, number == 10) for number in numbers], 10, target)
    sheet = np.asarray(Image.open(target)).astype(int)
    cell_width, cell_height = (244, 162) if width > height else (140, 266)
    for place, number in enumerate(numbers):
        left, top = 4 + place % 6 * cell_width, 4 + place // 6 * cell_height
        middle = sheet[top + 40 : top + 80, left + 40 : left + 80]
        assert abs(middle.mean() - 5 * number) < 3, number
    cut_edge = sheet[60, 4 + 3 * cell_width - 2]
    assert cut_edge[0] > 200 > cut_edge[2]


def test_a_file_that_is_not_a_clip_is_reported(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"no clip")
    with pytest.raises(EncodeFailed, match="contact sheet"):
        write_sheet(clip, [SheetFrame(0)], 10, tmp_path / "sheet.png")


def test_frames_after_the_end_are_reported(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    brightening(clip, 5, 64, 64)
    with pytest.raises(EncodeFailed):
        write_sheet(clip, [SheetFrame(0), SheetFrame(9)], 10, tmp_path / "sheet.png")
