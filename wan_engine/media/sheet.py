"""Draws a contact sheet: frames of a clip next to each other, with their times and the cuts
marked."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from wan_engine.errors import EncodeFailed
from wan_engine.media import ffmpeg
from wan_engine.runtime.paths import written

_COLUMNS = 6
_SIDE = 240  # pixels of the longer side of a picture
_LABEL = 22
_GAP = 4
_SECONDS = 120
_BACKGROUND, _TEXT, _CUT = (24, 24, 24), (235, 235, 235), (255, 90, 60)


@dataclass(frozen=True)
class SheetFrame:
    """One picture of the sheet: the number of its frame in the clip, and whether a shot begins
    there."""

    number: int
    is_cut: bool = False


def choose_frames(frames: int, fps: int, cut_seconds: Sequence[float]) -> list[SheetFrame]:
    """Two frames per second, the last one, and both frames at each cut."""
    cuts = {round(second * fps) for second in cut_seconds}
    numbers = set(range(0, frames, max(1, fps // 2))) | {frames - 1} | cuts
    numbers |= {cut - 1 for cut in cuts}
    return [SheetFrame(number, number in cuts) for number in sorted(numbers)]


def write_sheet(video: Path, shown: Sequence[SheetFrame], fps: int, target: Path) -> None:
    """Draw the frames `shown` of the file `video` to a PNG, which appears whole or not at all.
    Raises `EncodeFailed`, and `PathRefused` if it cannot be written."""
    pictures = _extract(video, [frame.number for frame in shown])
    width, height = pictures[0].size
    columns = min(_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    cell_width, cell_height = width + _GAP, height + _LABEL + _GAP
    size = columns * cell_width + _GAP, rows * cell_height + _GAP
    sheet = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_LABEL - 8)
    for place, (frame, picture) in enumerate(zip(shown, pictures, strict=True)):
        left = _GAP + place % columns * cell_width
        top = _GAP + place // columns * cell_height
        sheet.paste(picture, (left, top))
        label = f"{frame.number / fps:.2f} s" + ("  cut" if frame.is_cut else "")
        draw.text((left + 2, top + height + 3), label, _CUT if frame.is_cut else _TEXT, font)
        if frame.is_cut:
            draw.rectangle((left - _GAP, top, left - 1, top + height), fill=_CUT)
    with written(target) as path:
        sheet.save(path, "PNG")


def _extract(video: Path, numbers: Sequence[int]) -> list[Image.Image]:
    chosen = "+".join(f"eq(n\\,{number})" for number in numbers)
    scaled = f"scale={_SIDE}:{_SIDE}:force_original_aspect_ratio=decrease:force_divisible_by=2"
    command = [
        *(ffmpeg.executable(), "-v", "error", "-nostdin", "-i", str(video)),
        *("-vf", f"select={chosen},{scaled}", "-fps_mode", "passthrough"),
        *("-f", "image2pipe", "-c:v", "ppm", "-"),
    ]
    try:
        found = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EncodeFailed("The contact sheet could not be drawn") from error
    pictures = list(_split(found))
    if len(pictures) != len(numbers):
        raise EncodeFailed("The contact sheet could not be drawn")
    return pictures


def _split(data: bytes) -> list[Image.Image]:
    """Split a row of binary PPM pictures: `P6`, width and height, 255, pixels."""
    pictures, start = [], 0
    while start < len(data):
        head = data[start : start + 64].split(b"\n", 3)
        width, height = (int(side) for side in head[1].split())
        start += sum(len(line) + 1 for line in head[:3])
        end = start + width * height * 3
        pictures.append(Image.frombytes("RGB", (width, height), data[start:end]))
        start = end
    return pictures
