"""Makes pictures of a finished clip: its first frame, and a sheet of frames from the whole clip."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image

from wan_engine.control import Control
from wan_engine.errors import EncodeFailed
from wan_engine.media import ffmpeg

SHEET_COLUMNS = SHEET_ROWS = 4
_SHEET_WIDTH = 320  # of one frame
_SECONDS = 60.0
_QUALITY = 85


def thumbnail(clip: Path, width_max: int | None = None) -> bytes:
    """Return the first frame as WEBP, at most `width_max` pixels wide. Raises `EncodeFailed` if the
    clip cannot be read."""
    smaller = f"scale='min({width_max},iw)':-2" if width_max else "null"
    return _still(clip, smaller, "WEBP")


def spritesheet(clip: Path, seconds: float) -> bytes:
    """Return 16 frames of a clip of `seconds`, evenly spaced, in rows of four, as JPEG. Raises
    `EncodeFailed`."""
    rate = f"{SHEET_COLUMNS * SHEET_ROWS}/{seconds:g}"
    tiled = f"tile={SHEET_COLUMNS}x{SHEET_ROWS}"
    return _still(clip, f"fps={rate},scale={_SHEET_WIDTH}:-2,{tiled}", "JPEG")


def _still(clip: Path, filters: str, kind: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "still.png")
        wanted = ("-vf", filters, "-frames:v", "1", str(made))
        try:
            with ffmpeg.running(("-i", str(clip), *wanted), Control(), seconds=_SECONDS):
                pass
            picture = Image.open(made).convert("RGB")
        except (ffmpeg.Failed, OSError) as error:
            raise EncodeFailed("No picture can be made of this clip") from error
    encoded = io.BytesIO()
    picture.save(encoded, kind, quality=_QUALITY)
    return encoded.getvalue()
