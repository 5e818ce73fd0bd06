"""Lists the camera moves, and the phrases that make `wan-tiny` do them. Its tokenizer has a token
for each of their words, so a change here changes the vocabulary and needs new weights."""

from __future__ import annotations

MOVES = ("still", "zoom in", "zoom out", "pan left", "pan right", "tilt up", "tilt down")

PHRASES = {
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

ADVERBS = ("slowly", "gently", "smoothly", "steadily", "slightly")
ADJECTIVES = ("slow", "gentle", "smooth", "steady", "slight")


def words() -> list[str]:
    """Every word of the phrases, in both cases. The tokenizer has a token for each."""
    names = {word for phrases in PHRASES.values() for phrase in phrases for word in phrase.split()}
    names |= {*ADVERBS, *ADJECTIVES} - {"a"}
    return sorted({*names, *(name.capitalize() for name in names)})
