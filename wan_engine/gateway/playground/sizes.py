"""Computes the size of a clip before it is made, with the arithmetic of its plan."""

from __future__ import annotations

from typing import Any

from wan_engine.catalog import ModelSpec
from wan_engine.plan import FrameMode, crop_size, render_size, target_size


def sizes_of(
    width: int, height: int, size: str, row: ModelSpec | None, frame: FrameMode
) -> dict[str, Any]:
    """The `width` and `height` in pixels of the clip of a picture of `width` x `height`, and in
    `shown` the shares of the picture's sides that the clip shows.

    `row` is the model. Without it, only the size is exact.
    """
    clip = target_size(width, height, size, frame)
    if row is None:
        rendered = kept = clip
    else:
        rendered = render_size(*clip, row)
        kept = crop_size(*clip, *rendered, row.size_multiple)
    # The picture covers the render (`media.images.fit`), and the clip is the middle of the render.
    scale = max(rendered[0] / width, rendered[1] / height)
    shown = (kept[0] / (width * scale), kept[1] / (height * scale))
    return {
        "width": clip[0],
        "height": clip[1],
        "shown": [min(1.0, round(share, 4)) for share in shown],
        "rendered": None if row is None else list(rendered),
    }
