"""Defines the data between the steps: fetched media, plans, the inputs and outputs of a model,
results."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Frames = NDArray[np.uint8]
"""uint8 [n, height, width, 3], RGB."""

Framing = Literal["whole", "closer", "detail"]
Crop = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an image, as fractions of its sides."""

WHOLE: Crop = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class AudioTrack:
    """Sound that lies decoded in a file of our own: 48 kHz stereo PCM in a WAV."""

    path: Path
    seconds: float


@dataclass(frozen=True)
class Media:
    """What the order pointed to, fetched and checked. Pictures are upright 8-bit RGB.

    `image` is what the clip begins with, None where it begins with none; `subject` is where in it
    the closer shots look, as fractions of width and height. `aspect`, width to height, is the
    clip's where there is no image.

    `references` are in the order of the subjects, and `subjects` has the index of each one's. A
    subject of a video may have several, best first, and may speak in `voices`, which has an entry a
    subject. `warnings` is what the result says about all of them.
    """

    image: Image.Image | None = None
    audio: AudioTrack | None = None
    subject: tuple[float, float] = (0.5, 0.5)
    last_image: Image.Image | None = None
    references: tuple[Image.Image, ...] = ()
    subjects: tuple[int, ...] = ()
    voices: tuple[AudioTrack | None, ...] = ()
    aspect: tuple[int, int] = (16, 9)
    warnings: tuple[str, ...] = ()

    @property
    def pictures(self) -> tuple[Image.Image, ...]:
        """All of them: what safety looks at, the first one before the others."""
        ends = (one for one in (self.image, self.last_image) if one is not None)
        return (*ends, *self.references)


@dataclass(frozen=True)
class ScriptShot:
    """One shot as it was thought up. `framing` says how much of the image it starts from."""

    prompt: str
    seconds: int
    camera: str = ""
    framing: Framing = "whole"

    @property
    def text(self) -> str:
        """What the model is told: the prompt, then the camera."""
        return f"{self.prompt} {self.camera}".strip()


@dataclass(frozen=True)
class Script:
    """What is to be seen, shot by shot. The seconds add up to the request's duration."""

    shots: tuple[ScriptShot, ...]


@dataclass(frozen=True)
class Segment:
    """One run of the model, which samples `frames`. The first `repeated` show what the last ones of
    the segment before show; the `shown` after them are new, and go into the clip.

    `carried`: how many frames at the end the next segment begins with; 0 for the last one of a
    shot. `ends_clip`: it is the last one of all.
    """

    seed: int
    frames: int
    repeated: int
    shown: int
    carried: int = 0
    ends_clip: bool = False


@dataclass(frozen=True)
class Shot:
    """What is seen between two cuts. Its first segment starts from `crop` of the request's image.

    Its segments keep `source_frames` of the model; `frames` of the clip are made of them.
    """

    prompt: str
    segments: tuple[Segment, ...]
    frames: int
    crop: Crop = WHOLE

    @property
    def source_frames(self) -> int:
        return sum(segment.shown for segment in self.segments)


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before the GPU starts.

    The model renders `render_width` x `render_height`; the middle `crop_width` x `crop_height` of
    that is shown, scaled to `width` x `height`. `frames` at `fps` are exactly the duration; they
    are made of the `source_frames` at `source_fps` that the segments keep.
    """

    width: int
    height: int
    render_width: int
    render_height: int
    crop_width: int
    crop_height: int
    fps: int
    frames: int
    seed: int
    shots: tuple[Shot, ...]
    source_fps: int

    @property
    def source_frames(self) -> int:
        return sum(shot.source_frames for shot in self.shots)

    @property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(segment for shot in self.shots for segment in shot.segments)

    @property
    def cut_seconds(self) -> tuple[float, ...]:
        """When each shot but the first begins."""
        ends = accumulate(shot.frames for shot in self.shots[:-1])
        return tuple(end / self.fps for end in ends)


@dataclass
class Carry:
    """What the segments of a shot hand on, written while they run: empty before the first.

    `frames` are the last ones as they are shown, uint8 [k, height, width, 3], from the engine.
    `latents` (the last normalised ones, [1, c, n, h, w]) and `decoder` (what the VAE's decoder
    remembers, one entry a convolution) are the family's own; nobody else looks at them.
    """

    frames: NDArray[np.uint8] | None = None
    latents: Any = None
    decoder: list[Any] = field(default_factory=list)


# --- what a model is given, and what it gives ----------------------------------------------------


@dataclass(frozen=True)
class FirstPicture:
    """What the first frame shows, with the shape of the render already."""

    image: Image.Image


@dataclass(frozen=True)
class LastPicture:
    """What the last frame shows, with the shape of the render already."""

    image: Image.Image


@dataclass(frozen=True)
class References:
    """Whom and what the clip shows, in the shapes they came in. Their order is their identity; a
    subject of a video may have several images, one after another."""

    images: tuple[Image.Image, ...]


@dataclass(frozen=True)
class DrivingSound:
    """The sound that moves lips and body. The segment's first frame is `start_seconds` into it."""

    track: AudioTrack
    start_seconds: float


Condition = FirstPicture | LastPicture | References | DrivingSound | Carry
"""One thing that a segment is given beside its prompt."""

C = TypeVar("C", FirstPicture, LastPicture, References, DrivingSound, Carry)


@dataclass(frozen=True)
class SegmentInput:
    """One run of the model. A family takes from `conditions` what its row names, and the `Carry`
    that each segment of a shot has.

    `continued`: another segment goes on from the last frames of this one. `folder` is the job's
    own, for the sound that a model makes.
    """

    prompt: str
    negative_prompt: str
    conditions: tuple[Condition, ...]
    width: int
    height: int
    frames: int
    seed: int
    continued: bool = False
    folder: Path | None = None

    def find(self, kind: type[C]) -> C | None:
        """The condition of a kind; there is at most one."""
        return next((one for one in self.conditions if isinstance(one, kind)), None)

    @property
    def carry(self) -> Carry:
        """Where the segment before ended, and where this one says how it ends."""
        return self.find(Carry) or Carry()


@dataclass(frozen=True)
class Clip:
    """What a model makes of a segment. `frames` gives them a few at a time, as many as were asked
    for, and is closed by who takes them; `sound` lies in a file, as long as they are, or is
    None."""

    frames: Generator[Frames, None, None]
    sound: AudioTrack | None = None


# --- what comes out ------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncodedVideo:
    """A finished mp4 in the job's scratch folder."""

    path: Path
    frames: int
    bytes: int


@dataclass(frozen=True)
class VideoResult:
    """What a job gives back. `output()` is the contract's object; the rest is for logs and the
    command line."""

    video_url: str
    cost: Decimal
    seed: int
    warnings: tuple[str, ...] = ()
    model: str = ""
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    expanded_prompt: str = ""
    plan: Plan | None = None

    def output(self) -> dict[str, Any]:
        """The documented `output`: `video_url`, `cost`, and what decision 8 adds to it."""
        output: dict[str, Any] = {
            "video_url": self.video_url,
            "result": self.video_url,
            "cost": float(self.cost),
            "seed": self.seed,
        }
        if self.warnings:
            output["warnings"] = list(self.warnings)
        return output
