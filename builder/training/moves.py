"""Camera moves over a picture, and prompts that name them."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it

MOVES = ("still", "zoom in", "zoom out", "pan left", "pan right", "tilt up", "tilt down")

ZOOM_A_FRAME = 1.0025
"""1.22 over the 80 frame steps of a 5 s clip. A power, so that a later segment zooms on alike."""
PAN_PX_A_FRAME = 0.375
TILT_PX_A_FRAME = 0.25

_STEPS = {  # log zoom, and how far the camera looks to the right and down, a frame
    "still": (0, 0, 0),
    "zoom in": (1, 0, 0),
    "zoom out": (-1, 0, 0),
    "pan left": (0, -1, 0),
    "pan right": (0, 1, 0),
    "tilt up": (0, 0, -1),
    "tilt down": (0, 0, 1),
}

_PHRASES = {
    "still": (
        "the camera is still", "static shot", "the camera does not move", "still camera",
        "fixed camera", "a still shot", "the camera holds still",
    ),
    "zoom in": (
        "zoom in", "zooms in", "the camera zooms in", "zooming in", "the camera pushes in",
        "push in", "dolly in", "the camera moves closer", "the camera is zooming in",
    ),
    "zoom out": (
        "zoom out", "zooms out", "the camera zooms out", "zooming out", "the camera pulls back",
        "pull back", "dolly out", "the camera moves away", "the camera is zooming out",
    ),
    "pan left": (
        "pan left", "pans left", "the camera pans left", "panning left", "pan to the left",
        "the camera pans to the left", "the camera moves left", "the camera moves to the left",
    ),
    "pan right": (
        "pan right", "pans right", "the camera pans right", "panning right", "pan to the right",
        "the camera pans to the right", "the camera moves right", "the camera moves to the right",
    ),
    "tilt up": (
        "tilt up", "tilts up", "the camera tilts up", "tilting up", "the camera moves up",
        "tilt upwards", "the camera tilts upwards",
    ),
    "tilt down": (
        "tilt down", "tilts down", "the camera tilts down", "tilting down",
        "the camera moves down", "tilt downwards", "the camera tilts downwards",
    ),
}  # fmt: skip

_ADVERBS = ("slowly", "gently", "smoothly", "steadily", "slightly")
_ADJECTIVES = ("slow", "gentle", "smooth", "steady", "slight")
_WHO = (
    "a rocket", "an astronaut", "the woman", "a man in a red coat", "a dog", "the old house",
    "a boat", "two children", "a bird", "the city", "a tree", "smoke", "the sea", "a white car",
    "the person on the left", "a cat", "the right hand", "a portrait", "mountains", "flowers",
)  # fmt: skip
_WHAT = (
    "lifts off from the pad", "smiles", "looks up", "looks down", "stands in the field",
    "rolls over the ground", "walks out of the room", "turns to the left", "turns right",
    "waves in the wind", "runs away", "sits still", "flies up into the sky", "in the evening",
    "in the background", "breathes", "shines", "moves", "falls down", "on the right", "at night",
)  # fmt: skip


def words() -> list[str]:
    """Every word of the phrases, in both cases: the tokenizer has a piece for each."""
    names = {word for phrases in _PHRASES.values() for phrase in phrases for word in phrase.split()}
    names |= {*_ADVERBS, *_ADJECTIVES} - {"a"}
    return sorted({*names, *(name.capitalize() for name in names)})


def prompt(move: str, source: random.Random) -> str:
    """A prompt that names `move`, with other words around it or not."""
    phrase = source.choice(_PHRASES[move])
    if move != "still" and source.random() < 0.5:
        if phrase.startswith("the camera "):
            adverb = source.choice(_ADVERBS)
            phrase = phrase.replace("the camera ", f"the camera {adverb} ", 1)
            if source.random() < 0.3:
                phrase = phrase.replace("the camera", source.choice(("camera", "a camera")))
        else:
            phrase = f"{source.choice(_ADJECTIVES)} {phrase}"
    parts = [phrase]
    if move == "still" and source.random() < 0.4:
        parts = []  # nothing is said about the camera
    for _ in range(source.randint(1 - len(parts), 2)):
        parts.append(f"{source.choice(_WHO)} {source.choice(_WHAT)}")
    source.shuffle(parts)
    text = source.choice((", ", ". ", " and ", "; ")).join(parts)
    text = text[0].upper() + text[1:] if source.random() < 0.6 else text
    return text + source.choice(("", "", "."))


def warp(pictures: torch.Tensor, moves: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """What a camera sees that makes `moves` [n] (numbers in MOVES) over `pictures` [n, 3, h, w].

    `frames` [n, t]: the number of each frame, 0 is the picture itself; fractions and negative ones
    are allowed. Beyond its border the picture is mirrored. Returns [n, 3, t, h, w].
    """
    (count, _, height, width), times = pictures.shape, frames.shape[1]
    steps = torch.tensor([_STEPS[name] for name in MOVES], device=pictures.device)[moves]
    log_zoom = torch.log(torch.tensor(ZOOM_A_FRAME))
    scale = torch.exp(-log_zoom * steps[:, 0:1] * frames)[..., None]  # of what is seen
    shift_x = (2 * PAN_PX_A_FRAME / width) * steps[:, 1:2] * frames
    shift_y = (2 * TILT_PX_A_FRAME / height) * steps[:, 2:3] * frames
    x = (2 * torch.arange(width, device=pictures.device) + 1) / width - 1
    y = (2 * torch.arange(height, device=pictures.device) + 1) / height - 1
    x = (x * scale + shift_x[..., None])[:, :, None, :].expand(count, times, height, width)
    y = (y * scale + shift_y[..., None])[:, :, :, None].expand(count, times, height, width)
    grid = torch.stack([x, y], dim=-1).flatten(0, 1)
    source = pictures[:, None].expand(count, times, 3, height, width).flatten(0, 1)
    seen = F.grid_sample(
        source, grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    return seen.clamp(-1, 1).unflatten(0, (count, times)).transpose(1, 2)
