"""Defines the order that every request becomes, whichever API it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wan_engine.schema.fields import AspectRatio, Duration, ShotType, Size

Task = Literal[
    "image-to-video",
    "reference-to-video",
    "speech-to-video",
    "image-to-video-with-sound",
    "sound-for-video",
]
"""The task of a model. A row of the catalogue serves one task."""

Input = Literal["first_picture", "last_picture", "references", "driving_sound"]
"""The inputs that a model may accept besides its prompt."""


@dataclass(frozen=True)
class Order:
    """A clip to make. Media are URLs or data URIs that have not been fetched.

    `references`, whose order identifies the subjects, is None if the clip begins with `image`; if
    it is empty, the task is text-to-video. `sound`: True makes sound if the caller gives none,
    False leaves the clip silent, None uses only the caller's `audio`. `aspect_ratio` is the clip's
    if there is no picture. `seed` is -1 until the engine chooses one. `cuts` has one sentence per
    text of the caller that was cut. `any_frames`: use the first frame of an animated image instead
    of refusing it.
    """

    prompt: str
    image: str | None = None
    last_image: str | None = None
    references: tuple[str, ...] | None = None
    audio: str | None = None
    sound: bool | None = None
    negative_prompt: str | None = None
    size: Size = "1280*720"
    aspect_ratio: AspectRatio = "16:9"
    duration: Duration = 5
    shot_type: ShotType = "single"
    seed: int = -1
    expand_prompt: bool = False
    check_content: bool = True
    any_frames: bool = False
    cuts: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """The task as the hosted APIs name it, whichever model serves it."""
        return "image-to-video" if self.references is None else "reference-to-video"

    @property
    def gives(self) -> tuple[Input, ...]:
        """The inputs that the order has for a model. Sound is not one of them, because it can be
        muxed with any model's frames."""
        given: list[Input] = []
        if self.image is not None:
            given.append("first_picture")
        if self.last_image is not None:
            given.append("last_picture")
        if self.references:
            given.append("references")
        return tuple(given)
