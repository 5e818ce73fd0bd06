"""Evaluates `wan-tiny` on photographs, with the code that serves jobs, and prints JSON.

    python -m builder.train_toy.evaluate photo.jpg other.png --sheets outputs/evaluation

The figures are for one clip of 5 s at the render size per photo and camera move: the PSNR of the
first frame against the photo, that of the last frame against the intended move, and the measured
motion.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from builder.train_toy.motion import find_motion
from builder.train_toy.moves import warp
from builder.train_toy.vae import psnr
from wan_engine.catalog import CATALOG
from wan_engine.families import load_family
from wan_engine.plan import render_size
from wan_engine.runtime.recipes import Recipe
from wan_engine.schema import FirstPicture, SegmentInput
from wan_engine.toy import checkpoints
from wan_engine.toy.camera_moves import MOVES

_SPEC = CATALOG["wan-tiny"]
PROMPTS = {
    "still": "a portrait, the camera is still",
    "zoom in": "the camera slowly zooms in",
    "zoom out": "the camera slowly zooms out",
    "pan left": "the camera pans left",
    "pan right": "the camera pans right",
    "tilt up": "the camera tilts up",
    "tilt down": "the camera tilts down",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m builder.train_toy.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--weights", type=Path, default=checkpoints.WEIGHTS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sheets", type=Path, help="folder for first, middle and last frames")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints.WEIGHTS = options.weights
        folder = checkpoints.build("wan-tiny", Path(scratch) / "wan-tiny")
        family = load_family(_SPEC, folder, Recipe("cpu", "float32"))
        for photo in options.photos:
            print(json.dumps(evaluate(family, photo, options.seed, options.sheets)), flush=True)


def evaluate(family: Any, path: Path, seed: int, sheets: Path | None = None) -> dict[str, Any]:
    """Return the figures of one photo: `moves`, and `right`, the number of moves that were
    recognised as intended."""
    image = fitted(path)
    rows, strips = {}, []
    for move, prompt in PROMPTS.items():
        started = time.perf_counter()
        frames = clip(family, image, prompt, seed)
        seconds = time.perf_counter() - started
        rows[move] = compare(image, frames, move) | {"seconds": round(seconds, 2)}
        strips.append(_pixels(frames[[0, len(frames) // 2, -1]]))
    if sheets is not None:
        sheets.mkdir(parents=True, exist_ok=True)
        _write_sheet(sheets / f"{path.stem}.png", torch.stack(strips))
    right = sum(row["seen_as"] == move for move, row in rows.items())
    return {"photo": path.name, "size": image.size, "right": right, "moves": rows}


def fitted(path: Path) -> Image.Image:
    """Return the photo at the size at which the engine renders it."""
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image).convert("RGB")
    return ImageOps.fit(image, render_size(*image.size, _SPEC), Image.Resampling.LANCZOS)


def clip(family: Any, image: Image.Image, prompt: str, seed: int, frames: int = 81) -> np.ndarray:
    """Return the frames of one segment, uint8 [n, h, w, 3]."""
    segment = SegmentInput(prompt, "", (FirstPicture(image),), *image.size, frames, seed=seed)
    return np.concatenate(list(family.decode(family.denoise(segment, lambda _step: None))))


def compare(image: Image.Image, frames: np.ndarray, move: str) -> dict[str, Any]:
    """Return the figures of one clip of `image` in which the camera should make `move`."""
    picture, seen = _pixels(np.asarray(image)[None]), _pixels(frames[[0, -1]])
    number = torch.tensor([MOVES.index(move)])
    wanted = warp(picture, number, torch.tensor([[len(frames) - 1.0]]))[:, :, 0]
    motion = find_motion(picture, seen[1:])
    return {
        "first_frame_db": round(psnr(seen[:1], picture), 2),
        "last_frame_db": round(psnr(seen[1:], wanted), 2),
        **{name: round(value, 3) for name, value in asdict(motion).items()},
        "seen_as": motion.names(),
    }


def _write_sheet(path: Path, strips: torch.Tensor) -> None:
    """Write a picture of `strips` [rows, columns, 3, h, w] in -1..1."""
    rows, columns, _, height, width = strips.shape
    pixels = ((strips.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    sheet = pixels.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)
    Image.fromarray(sheet.numpy()).save(path)


def _pixels(frames: np.ndarray) -> torch.Tensor:
    """Convert uint8 [n, h, w, 3] to float32 [n, 3, h, w] in -1..1."""
    return torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1


if __name__ == "__main__":
    main()
