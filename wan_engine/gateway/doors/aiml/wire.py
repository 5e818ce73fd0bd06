"""Translates the AI/ML API's requests and answers. These are functions of plain values, without
HTTP and without the jobs service.

Names, defaults and sentences are those of this API (docs.aimlapi.com, `alibaba/wan-2-6-i2v` and
`alibaba/wan-2-6-r2v`). Its defaults differ from those of the other doors, so the doors share no
table of them.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from wan_engine.gateway.doors.pictures import as_url
from wan_engine.gateway.job import Job, State
from wan_engine.schema import SEED_MAX, AspectRatio, Task, not_read

CREDITS_PER_USD = 2_100_000
"""A clip of five seconds at 1080p costs 1,575,000 credits, and 0.75 USD in the price table."""

ID_CHARACTERS = 21
_ALPHABET = string.ascii_letters + string.digits + "_-"
_SHOWN_CHARACTERS = 60
_DIGITS = re.compile(r" *[0-9]{1,18} *")

Model = Literal[
    "alibaba/wan-2-6-i2v",
    "alibaba/wan2.6-i2v",
    "alibaba/wan2-6-i2v",
    "alibaba/wan-2-6-image-to-video-flash",
]
"""The canonical name, two names from older pages, and the flash model."""

ReferenceModel = Literal["alibaba/wan-2-6-r2v"]
MAX_VIDEOS = 3

_CREATED = 1_765_843_200
"""Unix seconds of 2025-12-16, the release date of Wan 2.6."""

Resolution = Literal["720p", "1080p"]
Duration = Literal[5, 10, 15]
ShotType = Literal["single", "multi"]

_DEFAULT_RESOLUTION: Mapping[str, Resolution] = {"alibaba/wan-2-6-image-to-video-flash": "720p"}
_SIZES: Mapping[str, str] = {"720p": "1280*720", "1080p": "1920*1080"}
_STATUS: Mapping[State, str] = {"queued": "queued", "running": "generating"}
_ERROR_NAMES = {
    # The error codes of the API that the AI/ML API calls (Alibaba Model Studio).
    "invalid_media": "InvalidURL",
    "invalid_request": "InvalidParameter",
    "content_policy": "DataInspectionFailed",
    "deadline_exceeded": "InternalError.Timeout",
    "time_limit_too_short": "InternalError.Timeout",
    "cancelled": "TaskCanceled",
}


class BodyError(Exception):
    """Raised for a body that does not match the schema. The text is for the caller, one line per
    field."""


# --- the request ---------------------------------------------------------------------------------


def _kind(value: object) -> str:
    """Return the type of a JSON value, with the name that JavaScript's validators use."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list | tuple) else "object"


def _refuse(sentence: str) -> PydanticCustomError:
    return PydanticCustomError("invalid_field", "{sentence}", {"sentence": sentence})


def _shown(value: object) -> str:
    if not isinstance(value, str):
        return str(value)
    cut = value if len(value) <= _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS] + "..."
    return f"'{cut}'"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _refuse(f"Expected string, received {_kind(value)}")
    return value


def _prompt(value: object) -> str:
    text = _text(value)
    if not text.strip():
        raise _refuse("String must contain at least 1 character(s)")
    return text


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise _refuse(f"Expected boolean, received {_kind(value)}")
    return value


def _integer(value: object) -> object:
    """Accept integers as integral strings or floats, because the page's own sample sends `"5"`."""
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _seed(value: object) -> int:
    seed = _integer(value)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise _refuse(f"Expected integer, received {_kind(value)}")
    if seed < 0:
        raise _refuse("Number must be greater than or equal to 0")
    if seed > SEED_MAX:
        raise _refuse(f"Number must be less than or equal to {SEED_MAX}")
    return seed


def _one_of(allowed: tuple[Any, ...]) -> BeforeValidator:
    return BeforeValidator(lambda value: _choice(value, allowed))


def _choice(value: object, allowed: tuple[Any, ...]) -> Any:
    found = _integer(value) if isinstance(allowed[0], int) else value
    if isinstance(found, type(allowed[0])) and not isinstance(found, bool) and found in allowed:
        return found
    plain = isinstance(value, int | float | str) and not isinstance(value, bool)
    received = _shown(value) if plain else _kind(value)
    raise _refuse(_wrong(allowed, received))


def _model(value: object, info: ValidationInfo) -> Any:
    """Accept only the names of models that this server has. Any other name is unknown."""
    return _choice(value, info.context or tuple(MODELS))


def _wrong(allowed: tuple[Any, ...], received: str) -> str:
    expected = " | ".join(_shown(value) for value in allowed)
    return f"Invalid enum value. Expected {expected}, received {received}"


def _url(value: object) -> str:
    text = _text(value).strip()
    if not text[:8].lower().startswith(("http://", "https://", "data:")):
        raise _refuse("Invalid url")
    return text


def _image(value: object) -> str:
    """Accept "a Base64-encoded local image", as the page says, as well as a link."""
    return _url(as_url(_text(value)))


def _videos(value: object) -> object:
    if not isinstance(value, list):
        raise _refuse(f"Expected array, received {_kind(value)}")
    if not value:
        raise _refuse("Array must contain at least 1 element(s)")
    if len(value) > MAX_VIDEOS:
        raise _refuse(f"Array must contain at most {MAX_VIDEOS} element(s)")
    return value


class GenerationRequest(BaseModel):
    """The body of `POST /v2/video/generations` for a model that animates a picture. Fields are in
    the page's order. Other keys are ignored, and `null` means absent."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    model: Annotated[Model, BeforeValidator(_model)]
    prompt: Annotated[str, BeforeValidator(_prompt)] = Field(
        description="The scene, subject and action to show."
    )
    image_url: Annotated[str, BeforeValidator(_image)] = Field(
        description="A link (http, https), data URI or base64 of the picture that is the first "
        "frame: JPEG, PNG, BMP or WEBP.",
        json_schema_extra={"format": "uri"},
    )
    audio_url: Annotated[str | None, BeforeValidator(_url)] = Field(
        default=None,
        description="A link or data URI of the sound: WAV or MP3. Cut to the duration if longer.",
        json_schema_extra={"format": "uri"},
    )
    resolution: Annotated[Resolution | None, _one_of(get_args(Resolution))] = Field(
        default=None,
        description="The default is `1080p`, or `720p` for the flash model.",
        json_schema_extra={"type": "string", "enum": ["720p", "1080p"], "default": "1080p"},
    )
    duration: Annotated[Duration, _one_of(get_args(Duration))] = Field(
        default=10, description="Seconds, as a number or a numeric string."
    )
    negative_prompt: Annotated[str | None, BeforeValidator(_text)] = Field(
        default=None, description="What the video must not show."
    )
    shot_type: Annotated[ShotType, _one_of(get_args(ShotType))] = Field(
        default="single", description="`multi` needs `enhance_prompt`."
    )
    generate_audio: Annotated[bool, BeforeValidator(_boolean)] = Field(
        default=True,
        description="Whether to make sound for a video without `audio_url`. If no model "
        "of this server makes sound, the track is silent, with a warning. `false`: no track. "
        "`audio_url` is never muted.",
    )
    seed: Annotated[int | None, BeforeValidator(_seed)] = Field(
        default=None, description="Random unless given.", ge=0, le=SEED_MAX
    )
    enhance_prompt: Annotated[bool, BeforeValidator(_boolean)] = Field(
        default=True, description="Whether to expand the prompt."
    )
    last_image_url: SkipJsonSchema[Annotated[str | None, BeforeValidator(_image)]] = None
    """The picture that the video ends with. The page has no such field."""

    @property
    def size(self) -> str:
        """The pixel budget, by the engine's name."""
        return _SIZES[self.resolution or _DEFAULT_RESOLUTION.get(self.model, "1080p")]

    def fields(self) -> dict[str, Any]:
        """The same clip as `VideoRequest` fields. Sets every field that this API decides, so that
        no default of another door applies."""
        return {
            "prompt": self.prompt,
            "image": self.image_url,
            "last_image": self.last_image_url,
            "audio": self.audio_url,
            "negative_prompt": self.negative_prompt,
            "size": self.size,
            "duration": self.duration,
            "shot_type": self.shot_type,
            "seed": -1 if self.seed is None else self.seed,
            "enable_prompt_expansion": self.enhance_prompt,
            "enable_safety_checker": True,
            "generate_audio": self.generate_audio,
        }


class ReferenceGenerationRequest(BaseModel):
    """The body of the same route for the model that takes reference videos."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    model: Annotated[ReferenceModel, BeforeValidator(_model)]
    prompt: Annotated[str, BeforeValidator(_prompt)] = Field(
        description="The scene to show. `character1` is the first of `video_urls`."
    )
    video_urls: Annotated[
        tuple[Annotated[str, BeforeValidator(_url)], ...], BeforeValidator(_videos)
    ] = Field(
        description="Links (http, https) or data URIs of videos of one subject each: MP4 or MOV.",
        json_schema_extra={
            "minItems": 1,
            "maxItems": MAX_VIDEOS,
            "items": {"type": "string", "format": "uri"},
        },
    )
    aspect_ratio: Annotated[AspectRatio, _one_of(get_args(AspectRatio))] = Field(
        default="16:9", description="Shape of the video."
    )
    resolution: Annotated[Resolution, _one_of(get_args(Resolution))] = "1080p"
    duration: Annotated[Duration, _one_of(get_args(Duration))] = Field(
        default=10, description="Seconds, as a number or a numeric string."
    )
    negative_prompt: Annotated[str | None, BeforeValidator(_text)] = Field(
        default=None, description="What the video must not show."
    )
    shot_type: Annotated[ShotType, _one_of(get_args(ShotType))] = Field(
        default="single", description="`multi` needs `enhance_prompt`."
    )
    seed: Annotated[int | None, BeforeValidator(_seed)] = Field(
        default=None, description="Random unless given.", ge=0, le=SEED_MAX
    )
    enhance_prompt: Annotated[bool, BeforeValidator(_boolean)] = Field(
        default=True, description="Whether to expand the prompt."
    )
    # The other page of this API has these two. `last_image_url` is on neither.
    audio_url: SkipJsonSchema[Annotated[str | None, BeforeValidator(_url)]] = None
    generate_audio: SkipJsonSchema[Annotated[bool, BeforeValidator(_boolean)]] = True
    last_image_url: SkipJsonSchema[Annotated[str | None, BeforeValidator(_image)]] = None

    @property
    def size(self) -> str:
        """The pixel budget, by the engine's name."""
        return _SIZES[self.resolution]

    def fields(self) -> dict[str, Any]:
        """The same clip as `ReferenceRequest` fields."""
        return {
            "prompt": self.prompt,
            "references": list(self.video_urls),
            "last_image": self.last_image_url,
            "audio": self.audio_url,
            "negative_prompt": self.negative_prompt,
            "size": self.size,
            "aspect_ratio": self.aspect_ratio,
            "duration": self.duration,
            "shot_type": self.shot_type,
            "seed": -1 if self.seed is None else self.seed,
            "enable_prompt_expansion": self.enhance_prompt,
            "enable_safety_checker": True,
            "generate_audio": self.generate_audio,
        }


_LINKS = ("audio_url", "last_image_url")
AnyRequest = GenerationRequest | ReferenceGenerationRequest

MODELS: Mapping[str, Task] = {
    **dict.fromkeys(get_args(Model), "image-to-video"),
    **dict.fromkeys(get_args(ReferenceModel), "reference-to-video"),
}
"""The task of each model."""


def parse(body: object, serves: Callable[[Task], bool] = lambda task: True) -> AnyRequest:
    """Parse a decoded body. Raises `BodyError` with every wrong field. A model whose task nothing
    `serves` is a wrong field too. An empty link counts as absent."""
    if not isinstance(body, Mapping):
        raise BodyError(f"Body validation error\nExpected object, received {_kind(body)}")
    known = {key: value for key, value in body.items() if value is not None}
    known = {key: value for key, value in known.items() if key not in _LINKS or value != ""}
    models = tuple(name for name, task in MODELS.items() if serves(task)) or ("",)
    references = known.get("model") in get_args(ReferenceModel)
    kind = ReferenceGenerationRequest if references else GenerationRequest
    if (found := not_read(known, kind.model_fields)) is not None:
        raise BodyError(f"Body validation error\n{found[1]}")
    try:
        return kind.model_validate(known, context=models)
    except ValidationError as error:
        issues = error.errors(include_url=False, include_input=False)
        hints = [_hint(issue["loc"], issue["type"], issue["msg"], models) for issue in issues]
        raise BodyError("\n".join(["Body validation error", *hints])) from None


def _hint(where: tuple[int | str, ...], kind: str, sentence: str, models: tuple[str, ...]) -> str:
    name, *entries = where
    if kind == "missing":
        sentence = _wrong(models, "undefined") if name == "model" else "Required"
    return f'{sentence} at "{name}{"".join(f"[{entry}]" for entry in entries)}"'


# --- the answers ---------------------------------------------------------------------------------


def model(name: str) -> dict[str, Any]:
    """A model in the list of models, with the keys of this API and of OpenAI's clients."""
    return {
        "id": name,
        "object": "model",
        "created": _CREATED,
        "owned_by": "alibaba",
        "type": "video",
        "info": {"name": name.partition("/")[2], "developer": "Alibaba Cloud"},
        "features": [MODELS[name]],
        "endpoints": ["/v2/video/generations"],
    }


def new_id() -> str:
    """Return a new id such as `V2cdWP9kao8xiofM-OvwG`."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(ID_CHARACTERS))


def created(generation_id: str, cost: Decimal) -> dict[str, Any]:
    """The answer to an accepted request, with the price of the clip in credits. `cost` is in
    USD."""
    credits_used = int(cost * CREDITS_PER_USD)
    usage = {"usage": {"credits_used": credits_used}}
    return {"id": generation_id, "status": "queued", "meta": usage}


def generation(job: Job, url: str | None) -> dict[str, Any]:
    """The answer to a poll, without the keys that do not apply. `url` is the URL of a finished
    clip.

    The hosted page does not have `warnings`, which appear only if there are any.
    """
    if job.state == "completed":
        done = {"id": job.id, "status": "completed", "video": {"url": url}}
        return {**done, **({"warnings": job.warnings} if job.warnings else {})}
    if job.state in _STATUS:
        return {"id": job.id, "status": _STATUS[job.state]}
    name = _ERROR_NAMES.get(job.error_code or "", "InternalError")
    message = job.error or "The generation was stopped"
    return {"id": job.id, "status": "error", "error": {"name": name, "message": message}}


@dataclass(frozen=True)
class Failure:
    """The body of every answer with a status of 400 or more. The status is a string, as in the
    page's sample."""

    message: str
    path: str
    request_id: str
    status: int
    timestamp: str

    def body(self) -> dict[str, str]:
        return {
            "message": self.message,
            "path": self.path,
            "requestId": self.request_id,
            "statusCode": str(self.status),
            "timestamp": self.timestamp,
        }
