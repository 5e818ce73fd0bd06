"""Camera moves by name, and prompts that ask for them."""

from __future__ import annotations

import random

MOVES = ("still", "zoom in", "zoom out", "pan left", "pan right", "tilt up", "tilt down")

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
