"""Writes prompts that ask for a camera move, with or without other words around it."""

from __future__ import annotations

import random

from wan_engine.toy.camera_moves import ADJECTIVES, ADVERBS, PHRASES

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


def prompt(move: str, source: random.Random) -> str:
    """Return a prompt that names `move`, with other words around it or not."""
    phrase = source.choice(PHRASES[move])
    if move != "still" and source.random() < 0.5:
        if phrase.startswith("the camera "):
            adverb = source.choice(ADVERBS)
            phrase = phrase.replace("the camera ", f"the camera {adverb} ", 1)
            if source.random() < 0.3:
                phrase = phrase.replace("the camera", source.choice(("camera", "a camera")))
        else:
            phrase = f"{source.choice(ADJECTIVES)} {phrase}"
    parts = [phrase]
    if move == "still" and source.random() < 0.4:
        parts = []  # no words about the camera
    for _ in range(source.randint(1 - len(parts), 2)):
        parts.append(f"{source.choice(_WHO)} {source.choice(_WHAT)}")
    source.shuffle(parts)
    text = source.choice((", ", ". ", " and ", "; ")).join(parts)
    text = text[0].upper() + text[1:] if source.random() < 0.6 else text
    return text + source.choice(("", "", "."))
