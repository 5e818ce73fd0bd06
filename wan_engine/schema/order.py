"""Defines the order that every request becomes, whichever API it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wan_engine.schema.fields import AspectRatio, ShotType, Size
from wan_engine.schema.lora import Lora

Task = Literal[
    "image-to-video",
    "reference-to-video",
    "speech-to-video",
    "image-to-video-with-sound",
    "sound-for-video",
]
"""The task of a model. A row of the catalogue serves one task."""

Input = Literal["first_picture", "last_picture", "first_clip", "references", "driving_sound"]
"""The inputs that a model may accept besides its prompt."""


@dataclass(frozen=True)
class Order:
    """A clip to make. Media are URLs or data URIs that have not been fetched.

    `references` is None if the clip begins with `image` or `first_clip`. Its order identifies the
    subjects, and an empty one means text-to-video. `first_clip` is a clip that the new one
    continues. With `keep_first_clip` the output begins with it, and `duration` is the length of
    both. `sound` is for an order without `audio`: a track with sound (True), no track (False), or
    the operator's setting (None). `duration` is in whole seconds, 2 to 15. `aspect_ratio` is the
    clip's if no picture decides it. `seed` is -1 until the engine chooses one. `cuts` has one
    sentence for each text of the request that was cut. `any_frames`: use the first frame of an
    animated image instead of refusing it. `loras` are fused into the models that make its frames,
    for this clip alone.
    """

    prompt: str
    image: str | None = None
    last_image: str | None = None
    first_clip: str | None = None
    keep_first_clip: bool = True
    references: tuple[str, ...] | None = None
    audio: str | None = None
    sound: bool | None = None
    negative_prompt: str | None = None
    size: Size = "1280*720"
    aspect_ratio: AspectRatio = "16:9"
    duration: int = 5
    shot_type: ShotType = "single"
    seed: int = -1
    expand_prompt: bool = False
    check_content: bool = True
    any_frames: bool = False
    loras: tuple[Lora, ...] = ()
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
        if self.first_clip is not None:
            given.append("first_clip")
        if self.references:
            given.append("references")
        return tuple(given)
