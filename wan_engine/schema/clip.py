"""Defines the data between the steps: fetched media, plans, the inputs and outputs of a model,
results."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wan_engine.schema.order import Task

Frames = NDArray[np.uint8]
"""uint8 [n, height, width, 3], RGB."""

Framing = Literal["whole", "closer", "detail"]
Crop = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an image, as fractions of its width and height."""

WHOLE: Crop = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class AudioTrack:
    """Decoded sound in a file of ours: a WAV with 48 kHz stereo PCM."""

    path: Path
    seconds: float


@dataclass(frozen=True)
class Colours:
    """How a player takes the colours of a video, in the numbers of ITU-T H.273."""

    matrix: int = 1
    primaries: int = 1
    transfer: int = 13


@dataclass(frozen=True)
class FirstClip:
    """A clip of the caller that the new one continues.

    `path` is the checked MP4 or MOV in the job's folder. `tail` are its last frames at the model's
    fps, upright 8-bit sRGB, the last one last. `sound` is its sound, or None.
    """

    path: Path
    seconds: float
    tail: tuple[Image.Image, ...]
    sound: AudioTrack | None = None
    colours: Colours = Colours()


@dataclass(frozen=True)
class Media:
    """The downloaded and checked media of an order. Pictures are upright 8-bit RGB.

    `image` is the first picture of the clip, or None. If the clip continues `first_clip`, `image`
    is the last frame of that. `subject` is the point in it that closer shots show, as fractions of
    width and height. `aspect` is the clip's ratio of width to height if there is no image.

    `references` are in the order of the subjects. A subject from a video may have several pictures,
    best first. `warnings` are those of all media, for the result.
    """

    image: Image.Image | None = None
    audio: AudioTrack | None = None
    subject: tuple[float, float] = (0.5, 0.5)
    last_image: Image.Image | None = None
    references: tuple[Image.Image, ...] = ()
    aspect: tuple[int, int] = (16, 9)
    first_clip: FirstClip | None = None
    warnings: tuple[str, ...] = ()

    @property
    def pictures(self) -> tuple[Image.Image, ...]:
        """All pictures, the first picture before the references. The safety checker looks at
        them."""
        ends = (one for one in (self.image, self.last_image) if one is not None)
        return (*ends, *self.references)


@dataclass(frozen=True)
class ScriptShot:
    """One shot of a script. `framing` says how much of the image it starts from. `sound` describes
    the sound, if a writer has done so."""

    prompt: str
    seconds: int
    camera: str = ""
    framing: Framing = "whole"
    sound: str = ""

    @property
    def text(self) -> str:
        """The text for the model: the prompt, then the camera move."""
        return f"{self.prompt} {self.camera}".strip()


@dataclass(frozen=True)
class Script:
    """The shots of a clip. Their seconds add up to the request's duration."""

    shots: tuple[ScriptShot, ...]


@dataclass(frozen=True)
class Segment:
    """One run of the model, which samples `frames`. Its first `repeated` frames repeat the end of
    the previous segment; the `shown` frames after them go into the clip.

    `carried`: the number of frames at its end that begin the next segment; 0 for the last segment
    of a shot. `ends_clip`: it is the last segment of the clip.
    """

    seed: int
    frames: int
    repeated: int
    shown: int
    carried: int = 0
    ends_clip: bool = False


@dataclass(frozen=True)
class Shot:
    """The part of the clip between two cuts. Its first segment starts from `crop` of the request's
    image.

    The model of `task` makes each of its segments in `steps`. Together they have `source_frames` of
    the model, from which `frames` of the clip are made. `sound` describes the sound.
    `ends_on_picture`: its last frame is the model's last one, which is a picture of the caller.
    """

    prompt: str
    segments: tuple[Segment, ...]
    frames: int
    crop: Crop = WHOLE
    task: Task = "image-to-video"
    steps: int = 1
    sound: str = ""
    ends_on_picture: bool = False

    @property
    def source_frames(self) -> int:
        return sum(segment.shown for segment in self.segments)


@dataclass(frozen=True)
class Plan:
    """Every number of a clip, decided before the GPU starts.

    The model renders `render_width` x `render_height`. The middle `crop_width` x `crop_height` of
    that is scaled to `width` x `height`. `frames` at `fps` are exactly the duration. The first
    `given_frames` of them come from the caller's clip. The others are made from the segments'
    `source_frames` at `source_fps`.
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
    given_frames: int = 0

    @property
    def made_frames(self) -> int:
        """The frames that the model makes."""
        return self.frames - self.given_frames

    @property
    def source_frames(self) -> int:
        return sum(shot.source_frames for shot in self.shots)

    @property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(segment for shot in self.shots for segment in shot.segments)

    @property
    def steps(self) -> int:
        """The number of steps of all segments."""
        return sum(shot.steps * len(shot.segments) for shot in self.shots)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of the models that make the clip, the first shot's first."""
        return tuple(dict.fromkeys(shot.task for shot in self.shots))

    @property
    def cut_seconds(self) -> tuple[float, ...]:
        """The start of each shot except the first, in seconds."""
        ends = accumulate((shot.frames for shot in self.shots[:-1]), initial=self.given_frames)
        next(ends)
        return tuple(end / self.fps for end in ends)


@dataclass
class Carry:
    """The data that the segments of a shot pass on. It is empty before the first.

    `frames` are the last frames of the segment, uint8 [k, height, width, 3]; `render.py` sets them.
    `latents` (the last normalised ones, [1, c, n, h, w]), `pixels` (of the last frames before
    rounding, [1, 3, n, height, width] in -1..1) and `decoder` (the state of the VAE's decoder, one
    entry per convolution) belong to the family.
    """

    frames: Frames | None = None
    latents: Any = None
    pixels: Any = None
    decoder: list[Any] = field(default_factory=list)


# --- inputs and outputs of a model ---------------------------------------------------------------


@dataclass(frozen=True)
class FirstPicture:
    """The picture of the first frame, in the shape of the render."""

    image: Image.Image


@dataclass(frozen=True)
class LastPicture:
    """The picture of the last frame, in the shape of the render."""

    image: Image.Image


@dataclass(frozen=True)
class References:
    """The subjects that the clip shows, in their own shapes. Their order identifies them. A subject
    from a video may have several images, one after another."""

    images: tuple[Image.Image, ...]


@dataclass(frozen=True)
class DrivingSound:
    """The sound that drives lips and body. The segment's first frame is at `start_seconds` of it,
    and the sound ends at `clip_seconds`."""

    track: AudioTrack
    start_seconds: float
    clip_seconds: float


Condition = FirstPicture | LastPicture | References | DrivingSound | Carry
"""One input of a segment besides the prompt."""

OnPreview = Callable[[int, Callable[[], Frames | None]], None]
"""Gets the number of finished steps of a segment, and a function that makes small frames of it. The
function is called only if anyone looks at previews, and may fail."""

OnBytes = Callable[[int, int], None]
"""Called with the bytes of a model loaded so far and the total. An error that it raises stops the
load."""

C = TypeVar("C", FirstPicture, LastPicture, References, DrivingSound, Carry)


@dataclass(frozen=True)
class SegmentInput:
    """The input of one segment. A family uses the `conditions` that its row names, and the `Carry`
    that all segments of a shot share.

    `continued`: another segment continues from the last frames of this one. `folder` is the job's
    folder, for the sound that a model makes. `on_preview` gets a function that makes a preview.
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
    on_preview: OnPreview | None = None

    def find(self, kind: type[C]) -> C | None:
        """The condition of this class, or None. There is at most one."""
        return next((one for one in self.conditions if isinstance(one, kind)), None)

    @property
    def carry(self) -> Carry:
        """The end of the previous segment. This segment replaces it with its own end."""
        return self.find(Carry) or Carry()


@dataclass(frozen=True)
class Clip:
    """The output of a model for one segment. `frames` yields a few frames at a time, as many as the
    segment has, and its consumer closes it. `sound` is a file as long as the frames, or None."""

    frames: Generator[Frames, None, None]
    sound: AudioTrack | None = None


@dataclass(frozen=True)
class SoundInput:
    """A window of a finished clip, for which a model makes the sound.

    `frames` has 4n + 1 of them at the model's fps and size; `prompt` describes the picture. `sound`
    describes the sound, if a prompt writer has done so.
    """

    prompt: str
    sound: str
    frames: Frames
    seed: int


@dataclass(frozen=True)
class Waveform:
    """Sound as samples: float32 [n, channels] in -1..1."""

    samples: NDArray[np.float32]
    rate_hz: int


# --- results -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncodedVideo:
    """A finished mp4 in the job's scratch folder. `warnings` says what could not be done."""

    path: Path
    frames: int
    bytes: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class VideoResult:
    """The result of a job. `output()` is the documented answer; the other fields are for logs and
    the command line."""

    video_url: str
    cost: Decimal
    seed: int
    warnings: tuple[str, ...] = ()
    model: str = ""
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    expanded_prompt: str = ""
    plan: Plan | None = None

    def output(self) -> dict[str, Any]:
        """The documented `output`: `video_url` and `cost`, and the fields that this engine adds."""
        output: dict[str, Any] = {
            "video_url": self.video_url,
            "result": self.video_url,
            "cost": float(self.cost),
            "seed": self.seed,
        }
        if self.warnings:
            output["warnings"] = list(self.warnings)
        return output
