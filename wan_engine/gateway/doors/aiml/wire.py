"""Translates the AI/ML API's requests and answers, as functions of plain values: no HTTP, no jobs
service.

Names, defaults and sentences are this API's own (docs.aimlapi.com, `alibaba/wan-2-6-i2v` and
`alibaba/wan-2-6-r2v`); its defaults differ from the other doors', so no table of them is shared.
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
from pydantic_core import PydanticCustomError

from wan_engine.gateway.doors.pictures import as_url
from wan_engine.gateway.job import Job, State
from wan_engine.schema import SEED_MAX, AspectRatio, Task

CREDITS_PER_USD = 2_100_000
"""1,575,000 credits for five seconds at 1080p, which cost 0.75 USD by the price table."""

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
"""The canonical name, the two of older pages, and the flash model."""

ReferenceModel = Literal["alibaba/wan-2-6-r2v"]
MAX_VIDEOS = 3

_CREATED = 1_765_843_200
"""Unix seconds of 2025-12-16, the day that Wan 2.6 came out on."""

Resolution = Literal["720p", "1080p"]
Duration = Literal[5, 10, 15]
ShotType = Literal["single", "multi"]

_DEFAULT_RESOLUTION: Mapping[str, Resolution] = {"alibaba/wan-2-6-image-to-video-flash": "720p"}
_SIZES: Mapping[str, str] = {"720p": "1280*720", "1080p": "1920*1080"}
_STATUS: Mapping[State, str] = {"queued": "queued", "running": "generating"}
_ERROR_NAMES = {
    # The names that the API behind this one gives (Alibaba Model Studio, error codes).
    "invalid_media": "InvalidURL",
    "invalid_request": "InvalidParameter",
    "content_policy": "DataInspectionFailed",
    "deadline_exceeded": "InternalError.Timeout",
    "time_limit_too_short": "InternalError.Timeout",
    "cancelled": "TaskCanceled",
}


class BodyError(Exception):
    """The body is not what the schema says. The text is for the caller, a line a field."""


# --- the request ---------------------------------------------------------------------------------


def _kind(value: object) -> str:
    """The type of a JSON value, as JavaScript's validators name it."""
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
    """Integers may come as integral strings or floats: the page's own sample sends `"5"`."""
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
    """Only names of models that are served: any other is unknown."""
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
    """The page takes "a Base64-encoded local image" as well as a link."""
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
    """The body of `POST /v2/video/generations` for a model that animates a picture, fields in the
    page's order. Other keys are ignored, `null` means absent."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    model: Annotated[Model, BeforeValidator(_model)]
    prompt: Annotated[str, BeforeValidator(_prompt)] = Field(
        description="What is to be seen: scene, subject, action."
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
        description="`1080p` unless given; `720p` for the flash model.",
        json_schema_extra={"type": "string", "enum": ["720p", "1080p"], "default": "1080p"},
    )
    duration: Annotated[Duration, _one_of(get_args(Duration))] = Field(
        default=10, description="Seconds; a numeric string is taken too."
    )
    negative_prompt: Annotated[str | None, BeforeValidator(_text)] = Field(
        default=None, description="What is not to be seen."
    )
    shot_type: Annotated[ShotType, _one_of(get_args(ShotType))] = Field(
        default="single", description="`multi` acts only with `enhance_prompt`."
    )
    generate_audio: Annotated[bool, BeforeValidator(_boolean)] = Field(
        default=True,
        description="Whether sound is made for a video without `audio_url`: silent, with a "
        "warning, where no model here makes any. `false`: the video has no track. `audio_url` is "
        "never muted.",
    )
    seed: Annotated[int | None, BeforeValidator(_seed)] = Field(
        default=None, description="Random unless given.", ge=0, le=SEED_MAX
    )
    enhance_prompt: Annotated[bool, BeforeValidator(_boolean)] = Field(
        default=True, description="Whether the prompt is expanded."
    )

    @property
    def size(self) -> str:
        """The pixel budget in the engine's words."""
        return _SIZES[self.resolution or _DEFAULT_RESOLUTION.get(self.model, "1080p")]

    def fields(self) -> dict[str, Any]:
        """The same clip as `VideoRequest` fields: every one this API decides, none left to another
        door's defaults."""
        return {
            "prompt": self.prompt,
            "image": self.image_url,
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
    """The body of the same route for the model that takes reference videos. It has no sound of the
    caller's."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    model: Annotated[ReferenceModel, BeforeValidator(_model)]
    prompt: Annotated[str, BeforeValidator(_prompt)] = Field(
        description="What is to be seen. `character1` is the first of `video_urls`."
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
        default=10, description="Seconds; a numeric string is taken too."
    )
    negative_prompt: Annotated[str | None, BeforeValidator(_text)] = Field(
        default=None, description="What is not to be seen."
    )
    shot_type: Annotated[ShotType, _one_of(get_args(ShotType))] = Field(
        default="single", description="`multi` acts only with `enhance_prompt`."
    )
    seed: Annotated[int | None, BeforeValidator(_seed)] = Field(
        default=None, description="Random unless given.", ge=0, le=SEED_MAX
    )
    enhance_prompt: Annotated[bool, BeforeValidator(_boolean)] = Field(
        default=True, description="Whether the prompt is expanded."
    )

    @property
    def size(self) -> str:
        """The pixel budget in the engine's words."""
        return _SIZES[self.resolution]

    def fields(self) -> dict[str, Any]:
        """The same clip as `ReferenceRequest` fields."""
        return {
            "prompt": self.prompt,
            "references": list(self.video_urls),
            "negative_prompt": self.negative_prompt,
            "size": self.size,
            "aspect_ratio": self.aspect_ratio,
            "duration": self.duration,
            "shot_type": self.shot_type,
            "seed": -1 if self.seed is None else self.seed,
            "enable_prompt_expansion": self.enhance_prompt,
            "enable_safety_checker": True,
            "generate_audio": True,  # the page has no switch for it
        }


AnyRequest = GenerationRequest | ReferenceGenerationRequest

MODELS: Mapping[str, Task] = {
    **dict.fromkeys(get_args(Model), "image-to-video"),
    **dict.fromkeys(get_args(ReferenceModel), "reference-to-video"),
}
"""The task of each model."""


def parse(body: object, serves: Callable[[Task], bool] = lambda task: True) -> AnyRequest:
    """The request in a decoded body. Raises `BodyError` that names every wrong field; a model whose
    task nothing `serves` is one."""
    if not isinstance(body, Mapping):
        raise BodyError(f"Body validation error\nExpected object, received {_kind(body)}")
    known = {key: value for key, value in body.items() if value is not None}
    models = tuple(name for name, task in MODELS.items() if serves(task)) or ("",)
    references = known.get("model") in get_args(ReferenceModel)
    kind = ReferenceGenerationRequest if references else GenerationRequest
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
    """A model in the list of them: as this API has it, and as OpenAI's clients read it."""
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
    """An id such as `V2cdWP9kao8xiofM-OvwG`."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(ID_CHARACTERS))


def created(generation_id: str, cost: Decimal) -> dict[str, Any]:
    """The answer to a request that was taken, with what the clip costs in credits. `cost` in
    USD."""
    credits_used = int(cost * CREDITS_PER_USD)
    usage = {"usage": {"credits_used": credits_used}}
    return {"id": generation_id, "status": "queued", "meta": usage}


def generation(job: Job, url: str | None) -> dict[str, Any]:
    """The answer to a poll; what does not apply is left out. `url` is that of a finished clip.

    `warnings`, where there are any, is not on the page.
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
    """The body of every answer with a status of 400 or more. The page's sample has the status as a
    string."""

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
