"""The nouns that travel: what a caller asks for, what is planned, what comes out. Reading it tells
the program.

`VideoRequest` is the only door: whatever the transport, a request passes here and nowhere else.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from wan_engine.errors import InvalidRequest

log = logging.getLogger(__name__)

Frames = NDArray[np.uint8]
"""uint8 [n, height, width, 3], RGB."""

Size = Literal["1280*720", "1920*1080"]
Duration = Literal[5, 10, 15]
ShotType = Literal["single", "multi"]
Framing = Literal["whole", "closer", "detail"]
Crop = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an image, as fractions of its sides."""

WHOLE: Crop = (0.0, 0.0, 1.0, 1.0)

PROMPT_MAX_CHARACTERS = 1500
NEGATIVE_PROMPT_MAX_CHARACTERS = 500
SEED_MAX = 2**31 - 1
_SIZE_NAMES = {"720p": "1280*720", "1080p": "1920*1080"}
_SHOWN_CHARACTERS = 60
_INTEGRAL = re.compile(r" *[+-]?[0-9]{1,18} *")


# --- the request ---------------------------------------------------------------------------------


def _described(value: object) -> str:
    """A JSON value as an error names it: its type, and the value itself where that is short."""
    if isinstance(value, bool):
        return f"boolean {json.dumps(value)}"
    if isinstance(value, int | float):
        shown = (
            json.dumps(value) if isinstance(value, float) or abs(value) < 10**18 else "too large"
        )
        return f"number {shown}"
    if isinstance(value, str):
        shown = json.dumps(value[: _SHOWN_CHARACTERS + 1])
        if len(shown) > _SHOWN_CHARACTERS + 2:  # also where few characters become long escapes
            shown = shown[: _SHOWN_CHARACTERS + 1].rstrip("\\") + '..."'
        return f"string {shown}"
    if isinstance(value, list | tuple):
        return "array"
    return "object" if isinstance(value, Mapping) else type(value).__name__


def _refuse(name: str, allowed: str, value: object) -> PydanticCustomError:
    sentence = f'field "{name}" must be {allowed}, got {_described(value)}'
    return PydanticCustomError("invalid_field", "{sentence}", {"sentence": sentence})


def _clean(text: str) -> str:
    """Text that every tokenizer and log takes: no NUL, no half of a surrogate pair."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def _text(name: str, value: object, max_characters: int) -> str:
    if not isinstance(value, str):
        raise _refuse(name, "a string", value)
    return _clean(value)[:max_characters]


def _prompt(value: object) -> str:
    text = _text("prompt", value, PROMPT_MAX_CHARACTERS)
    if not text.strip():
        raise _refuse("prompt", "a string that is not blank", value)
    return text


def _negative_prompt(value: object) -> str | None:
    text = _text("negative_prompt", value, NEGATIVE_PROMPT_MAX_CHARACTERS)
    return text if text.strip() else None


def cut_sentence(name: str, kept: int, given: int, why: str) -> str:
    """How a result says that it has only the first `kept` of `given` characters of a text."""
    return f"The {name} was cut after {kept} of its {given} characters: {why}"


def _cuts(payload: Mapping[str, Any]) -> Iterator[str]:
    most = {
        "prompt": PROMPT_MAX_CHARACTERS,
        "negative_prompt": NEGATIVE_PROMPT_MAX_CHARACTERS,
    }
    for name, kept in most.items():
        if isinstance(text := payload.get(name), str) and (given := len(_clean(text))) > kept:
            yield cut_sentence(name.replace("_", " "), kept, given, "no more are taken")


def _source(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _refuse(name, "a string", value)
    text = _clean(value).strip()
    if not text.lower().startswith(("http://", "https://", "data:")):
        sentence = f"Invalid {name} URL: it must start with http://, https:// or data:"
        raise PydanticCustomError("invalid_field", "{sentence}", {"sentence": sentence})
    return text


def _integer(name: str, allowed: str, value: object) -> int:
    """Integers may come as integral strings or integral floats, never as booleans (decision 6)."""
    if isinstance(value, str) and _INTEGRAL.fullmatch(value):
        return int(value)
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _refuse(name, allowed, value)
    return value


def _seed(value: object) -> int:
    seed = _integer("seed", "an integer", value)
    if not -1 <= seed <= SEED_MAX:
        raise _refuse("seed", f"an integer from -1 to {SEED_MAX}", value)
    return seed


def _duration(value: object) -> int:
    allowed = f"one of {json.dumps(get_args(Duration))}"
    seconds = _integer("duration", allowed, value)
    if seconds not in get_args(Duration):
        raise _refuse("duration", allowed, value)
    return seconds


def _size(value: object) -> str:
    name = value.strip().lower() if isinstance(value, str) else ""
    name = _SIZE_NAMES.get(name, name)
    if name not in get_args(Size):
        raise _refuse("size", f"one of {json.dumps(get_args(Size))}", value)
    return name


def _shot_type(value: object) -> str:
    if value not in get_args(ShotType):
        raise _refuse("shot_type", f"one of {json.dumps(get_args(ShotType))}", value)
    return str(value)


def _boolean(name: str) -> BeforeValidator:
    def check(value: object) -> bool:
        if not isinstance(value, bool):
            raise _refuse(name, "a boolean", value)
        return value

    return BeforeValidator(check)


class VideoRequest(BaseModel):
    """One clip, as the hosted `wan-2-6-i2v` endpoint documents its `input` (fields in the page's
    order).

    Build it with `VideoRequest.parse` where the values come from a stranger: that raises
    `InvalidRequest` with one sentence. The constructor takes the same values and raises pydantic's
    `ValidationError`.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        title="wan-2-6-i2v input",
        json_schema_extra={"description": "One clip of image-to-video generation."},
    )

    prompt: Annotated[str, BeforeValidator(_prompt)] = Field(
        description="Text description of the desired video motion and content. "
        f"Longer than {PROMPT_MAX_CHARACTERS} characters is cut."
    )
    image: Annotated[str, BeforeValidator(lambda value: _source("image", value))] = Field(
        description="URL (http, https) or data URI of the source image to animate: JPEG, PNG, "
        "BMP or WEBP."
    )
    audio: Annotated[str, BeforeValidator(lambda value: _source("audio", value))] | None = Field(
        default=None,
        description="URL (http, https) or data URI of a sound to include in the video: WAV or MP3. "
        "Cut to the duration if longer, silence after it if shorter.",
    )
    negative_prompt: Annotated[str | None, BeforeValidator(_negative_prompt)] = Field(
        default=None,
        description="Elements to exclude from the generated video. "
        f"Longer than {NEGATIVE_PROMPT_MAX_CHARACTERS} characters is cut.",
    )
    size: Annotated[Size, BeforeValidator(_size)] = Field(
        default="1280*720",
        description="Video resolution as a pixel budget; the picture keeps the shape of the image. "
        "`720p` and `1080p` are names of the two.",
    )
    duration: Annotated[Duration, BeforeValidator(_duration)] = Field(
        default=5, description="Video duration in seconds."
    )
    shot_type: Annotated[ShotType, BeforeValidator(_shot_type)] = Field(
        default="single",
        description="Shot composition mode. `multi` acts only with `enable_prompt_expansion`.",
    )
    seed: Annotated[
        int,
        BeforeValidator(_seed),
        WithJsonSchema({"type": "integer", "minimum": -1, "maximum": SEED_MAX}),
    ] = Field(default=-1, description="Seed for reproducible results. Set to -1 for random.")
    enable_prompt_expansion: Annotated[bool, _boolean("enable_prompt_expansion")] = Field(
        default=False, description="Automatically expand and enhance the prompt."
    )
    enable_safety_checker: Annotated[bool, _boolean("enable_safety_checker")] = Field(
        default=True, description="Enable content safety checking."
    )
    first_frame: Annotated[bool, _boolean("first_frame")] = Field(
        default=False,
        description="Not on the hosted page: take the first frame of an animated image, and GIF "
        "as well, instead of refusing it.",
    )

    _cuts: tuple[str, ...] = PrivateAttr(default=())

    @property
    def cuts(self) -> tuple[str, ...]:
        """What was left out of the caller's text, a sentence each."""
        return self._cuts

    @model_validator(mode="wrap")
    @classmethod
    def _remember_cuts(
        cls, payload: Any, build: ModelWrapValidatorHandler[VideoRequest]
    ) -> VideoRequest:
        request = build(payload)
        if isinstance(payload, Mapping):
            request._cuts = tuple(_cuts(payload))
        return request

    @classmethod
    def parse(cls, payload: object) -> VideoRequest:
        """The request in `payload`, a JSON object. Raises `InvalidRequest`: one sentence, the first
        wrong field.

        `null` means absent, and so do an empty `audio` and `negative_prompt`, as forms send them.
        Unknown keys are ignored.
        """
        if payload is None:
            raise InvalidRequest('field "input" is required')
        if not isinstance(payload, Mapping):
            raise InvalidRequest(f'field "input" must be an object, got {_described(payload)}')
        names = (json.dumps(str(key)[:40])[1:-1] for key in payload if key not in cls.model_fields)
        unknown = sorted(names)
        if unknown:
            log.info("ignored unknown input fields: %s", ", ".join(unknown[:20]))
        known = {
            key: value
            for key, value in payload.items()
            if key in cls.model_fields and value is not None
        }
        for key in ("audio", "negative_prompt"):
            if known.get(key) == "":
                del known[key]
        try:
            return cls.model_validate(known)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            if first["type"] == "missing":
                raise InvalidRequest(f'field "{first["loc"][0]}" is required') from None
            raise InvalidRequest(first["msg"]) from None


# --- between the verbs ---------------------------------------------------------------------------


@dataclass(frozen=True)
class AudioTrack:
    """Sound that ffmpeg has decoded once: 48 kHz stereo PCM in a WAV file of our own."""

    path: Path
    seconds: float


@dataclass(frozen=True)
class Media:
    """What the request pointed to, fetched and checked. `image` is upright 8-bit RGB; `subject` is
    where in it the closer shots look, as fractions of width and height."""

    image: Image.Image
    audio: AudioTrack | None = None
    subject: tuple[float, float] = (0.5, 0.5)


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
    shot.
    """

    seed: int
    frames: int
    repeated: int
    shown: int
    carried: int = 0


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


@dataclass(frozen=True)
class SegmentInput:
    """What one run of the model needs. `image` is the user's, with the shape of `width` x `height`
    already; `carry` is where the segment before ended."""

    prompt: str
    negative_prompt: str
    image: Image.Image
    width: int
    height: int
    frames: int
    seed: int
    carry: Carry = field(default_factory=Carry)


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
