"""Checks the parameters of Oxen's models, with Oxen's error messages.

Oxen's defaults differ from those of the other doors, so the doors share no table of them. Oxen
passes parameters that its WAN 2.6 pages do not list on to its provider (fal
`wan/v2.6/image-to-video` and `wan/v2.6/reference-to-video`). Their names and defaults are here as
well.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from wan_engine.schema import SEED_MAX, AspectRatio, is_nothing, not_read

MAX_GENERATIONS = 12
"""From Oxen's OpenAPI of July 2026. An older page says 4."""
MAX_VIDEOS = 3

Resolution = Literal["720p", "1080p"]
Duration = Literal[5, 10, 15]
ResponseFormat = Literal["url", "b64_json"]

_SIZES: Mapping[str, str] = {"720p": "1280*720", "1080p": "1920*1080"}
_INTEGRAL = re.compile(r" *[+-]?[0-9]{1,18} *")


class ProviderError(Exception):
    """Raised for parameters that the model does not accept. The text is for the caller."""


# --- the request ---------------------------------------------------------------------------------


def _refuse(sentence: str) -> PydanticCustomError:
    return PydanticCustomError("invalid_field", "{sentence}", {"sentence": sentence})


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _refuse("Input should be a valid string")
    return value


def _prompt(value: object) -> str:
    text = _text(value)
    if not text.strip():
        raise _refuse("String should have at least 1 character")
    return text


def _url(value: object) -> str:
    text = _text(value).strip()
    if not text[:8].lower().startswith(("http://", "https://", "data:")):
        raise _refuse("Invalid URL")
    return text


def _image(value: object) -> str:
    """The general page of the API allows a string or an array. This model animates one picture."""
    if isinstance(value, list):
        if len(value) != 1:
            raise _refuse("Input should be one image")
        value = value[0]
    return _url(value)


def _videos(value: object) -> list[object]:
    if not isinstance(value, list):
        raise _refuse("Input should be a valid list")
    if len(value) > MAX_VIDEOS:
        raise _refuse(f"List should have at most {MAX_VIDEOS} items, not {len(value)}")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise _refuse("Input should be a valid boolean")
    return value


def _integer(value: object) -> object:
    if isinstance(value, str) and _INTEGRAL.fullmatch(value):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _seed(value: object) -> int:
    seed = _integer(value)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise _refuse("Input should be a valid integer")
    if not 0 <= seed <= SEED_MAX:
        raise _refuse(f"Input should be from 0 to {SEED_MAX}")
    return seed


def _one_of(allowed: tuple[Any, ...]) -> BeforeValidator:
    shown = [repr(value) for value in allowed]
    expected = f"Input should be {', '.join(shown[:-1])} or {shown[-1]}"

    def check(value: object) -> Any:
        found = _integer(value) if isinstance(allowed[0], int) else value
        if isinstance(found, bool) or not isinstance(found, int | str) or found not in allowed:
            raise _refuse(expected)
        return found

    return BeforeValidator(check)


_LINKS = ("audio_url", "last_image")


class Parameters(BaseModel, ABC):
    """The parameters of a model: those of its page, then those that Oxen passes on. Other keys are
    ignored. `null` means absent, and so does an empty link."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """Parse a decoded body. Raises `ProviderError` with the first wrong field."""
        known = {
            key: value
            for key, value in body.items()
            if value is not None and not (key in _LINKS and is_nothing(value))
        }
        if (found := not_read(known, cls.model_fields)) is not None:
            raise ProviderError(provider_error(f"{found[0]}: {found[1]}"))
        if known.keys().isdisjoint(("prompt", "multi_prompt")):
            sentence = "Value error, Either 'prompt' or 'multi_prompt' must be provided."
            raise ProviderError(provider_error(sentence))
        try:
            return cls.model_validate(known)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            why = "Field required" if first["type"] == "missing" else first["msg"]
            where = ".".join(str(part) for part in first["loc"])
            raise ProviderError(provider_error(f"{where}: {why}")) from None

    @abstractmethod
    def fields(self, number: int = 0) -> dict[str, Any]:
        """The same clip as the fields of a `Request`. `number` counts the generations of one
        request from 0."""


def _seed_of(seed: int | None, number: int) -> int:
    """Return another seed for each generation of one request, because equal seeds would give equal
    clips."""
    return -1 if seed is None else (seed + number) % (SEED_MAX + 1)


class VideoParameters(Parameters):
    """The parameters of `wan-v2-6-image-to-video`."""

    prompt: Annotated[str, BeforeValidator(_prompt)] = Field(
        description="The scene and action to show."
    )
    input_image: Annotated[str, BeforeValidator(_image)] = Field(
        description="A link (http, https) or data URI of the first frame: JPEG, PNG, GIF, BMP or "
        "WEBP.",
        json_schema_extra={"format": "uri"},
    )
    duration: Annotated[Duration, _one_of(get_args(Duration))] = Field(
        default=5, description="Seconds of video."
    )
    audio_url: Annotated[str | None, BeforeValidator(_url)] = Field(
        default=None,
        description="A link or data URI of the sound, WAV or MP3. Cut to the duration if longer.",
        json_schema_extra={"format": "uri"},
    )
    negative_prompt: Annotated[str | None, BeforeValidator(_text)] = Field(
        default=None, description="What the video must not show."
    )
    resolution: Annotated[Resolution, _one_of(get_args(Resolution))] = Field(default="1080p")
    seed: Annotated[int | None, BeforeValidator(_seed)] = Field(
        default=None, description="Random unless given.", ge=0, le=SEED_MAX
    )
    multi_shots: Annotated[bool, BeforeValidator(_boolean)] = Field(
        default=False, description="Several shots; needs `enable_prompt_expansion`."
    )
    enable_prompt_expansion: Annotated[bool, BeforeValidator(_boolean)] = True
    enable_safety_checker: Annotated[bool, BeforeValidator(_boolean)] = True
    generate_audio: Annotated[bool, BeforeValidator(_boolean)] = Field(
        default=True,
        description="Whether to make sound for a video without `audio_url`. If no model "
        "of this server makes sound, the track is silent, with a warning. `false`: no track.",
    )
    last_image: SkipJsonSchema[Annotated[str | None, BeforeValidator(_image)]] = None
    """The picture that the video ends with. The page has no such field."""

    def fields(self, number: int = 0) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "image": self.input_image,
            "last_image": self.last_image,
            "audio": self.audio_url,
            "negative_prompt": self.negative_prompt,
            "size": _SIZES[self.resolution],
            "duration": self.duration,
            "shot_type": "multi" if self.multi_shots else "single",
            "seed": _seed_of(self.seed, number),
            "enable_prompt_expansion": self.enable_prompt_expansion,
            "enable_safety_checker": self.enable_safety_checker,
            "generate_audio": self.generate_audio,
            "first_frame": True,  # the page accepts GIF
        }


class ReferenceParameters(Parameters):
    """The parameters of `wan-v2-6-reference-to-video`. The page's minimal request has only a
    prompt, so it is text-to-video here. The provider accepts 5 and 10 seconds; this engine accepts
    15 too."""

    prompt: Annotated[str, BeforeValidator(_prompt)] = Field(
        description="The scene and action to show. `@Video1` or `character1` is the first of "
        "`input_videos`."
    )
    input_videos: Annotated[
        tuple[Annotated[str, BeforeValidator(_url)], ...], BeforeValidator(_videos)
    ] = Field(
        default=(),
        description="Links (http, https) or data URIs of videos of one subject each: MP4 or MOV.",
        json_schema_extra={
            "maxItems": MAX_VIDEOS,
            "items": {"type": "string", "format": "uri"},
        },
    )
    duration: Annotated[Duration, _one_of(get_args(Duration))] = Field(
        default=5, description="Seconds of video."
    )
    negative_prompt: Annotated[str | None, BeforeValidator(_text)] = Field(
        default=None, description="What the video must not show."
    )
    aspect_ratio: Annotated[AspectRatio, _one_of(get_args(AspectRatio))] = "16:9"
    resolution: Annotated[Resolution, _one_of(get_args(Resolution))] = Field(default="1080p")
    seed: Annotated[int | None, BeforeValidator(_seed)] = Field(
        default=None, description="Random unless given.", ge=0, le=SEED_MAX
    )
    multi_shots: Annotated[bool, BeforeValidator(_boolean)] = Field(
        default=True, description="Several shots; needs `enable_prompt_expansion`."
    )
    enable_prompt_expansion: Annotated[bool, BeforeValidator(_boolean)] = True
    enable_safety_checker: Annotated[bool, BeforeValidator(_boolean)] = True
    # The other model of this API has these. `last_image` is on neither page.
    audio_url: SkipJsonSchema[Annotated[str | None, BeforeValidator(_url)]] = None
    generate_audio: SkipJsonSchema[Annotated[bool, BeforeValidator(_boolean)]] = True
    last_image: SkipJsonSchema[Annotated[str | None, BeforeValidator(_image)]] = None

    def fields(self, number: int = 0) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "references": list(self.input_videos),
            "last_image": self.last_image,
            "audio": self.audio_url,
            "negative_prompt": self.negative_prompt,
            "size": _SIZES[self.resolution],
            "aspect_ratio": self.aspect_ratio,
            "duration": self.duration,
            "shot_type": "multi" if self.multi_shots else "single",
            "seed": _seed_of(self.seed, number),
            "enable_prompt_expansion": self.enable_prompt_expansion,
            "enable_safety_checker": self.enable_safety_checker,
            "generate_audio": self.generate_audio,
        }


def response_format(body: Mapping[str, Any]) -> ResponseFormat:
    """The format in which the sync route returns the video. Raises `ProviderError`."""
    asked = body.get("response_format") or "url"
    for known in get_args(ResponseFormat):
        if asked == known:
            return known  # type: ignore[no-any-return]
    raise ProviderError(provider_error("response_format: Input should be 'url' or 'b64_json'"))


def number_of_generations(body: Mapping[str, Any]) -> int | None:
    """The number of clips that a request to the queue asks for. None if that is not 1 to 12."""
    asked = body.get("num_generations")
    number = 1 if asked is None else _integer(asked)
    if isinstance(number, bool) or not isinstance(number, int):
        return None
    return number if 1 <= number <= MAX_GENERATIONS else None


def provider_error(why: str, status: int = 422) -> str:
    """The sentence for an error of the model's provider."""
    return f"Getting model response error: {status} - {why}"
