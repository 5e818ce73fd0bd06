"""Puts the pictures of one state on one sheet: the widths beside each other, light above dark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

_GAP_PX = 24
_GROUND = "#808890"


def sheet(rows: Sequence[Sequence[Path]], path: Path) -> None:
    """Write the pictures of all `rows` to one picture at `path`."""
    pictures = [[Image.open(one) for one in row] for row in rows]
    wide = max(sum(one.width + _GAP_PX for one in row) for row in pictures) + _GAP_PX
    highs = [max(one.height for one in row) for row in pictures]
    whole = Image.new("RGB", (wide, sum(highs) + _GAP_PX * (len(rows) + 1)), _GROUND)
    down = _GAP_PX
    for row, high in zip(pictures, highs, strict=True):
        across = _GAP_PX
        for one in row:
            whole.paste(one, (across, down))
            across += one.width + _GAP_PX
        down += high + _GAP_PX
    whole.save(path)
