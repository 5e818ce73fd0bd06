"""Reads the parameters of DashScope's `video-synthesis`, as functions of plain values.

Names and defaults are from Alibaba Model Studio's pages for `wan2.6-i2v`, `wan2.6-r2v` and
`wan2.6-t2v`, and for `wan2.7-*`, which takes media as one array. The length of a clip is the
engine's: any whole second from 2 to 15.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from wan_engine.errors import InvalidRequest
from wan_engine.gateway.doors.pictures import as_url
from wan_engine.plan import NAMED_SIZES
from wan_engine.schema import (
    PROMPT_MAX_CHARACTERS,
    SEED_MAX,
    AspectRatio,
    Task,
    not_read,
    parse_request,
)

Kind = Literal["i2v", "r2v", "t2v"]

_DEFAULT_PROMPT = "The picture comes to life with natural motion."
"""The prompt for a picture that comes without one, which the page allows."""

_TIERS = {"720P": "1280*720", "1080P": "1920*1080"}
_SIZES: Mapping[str, tuple[str, str]] = {
    f"{width}*{height}": (budget, f"{ratio[0]}:{ratio[1]}")
    for budget, shapes in NAMED_SIZES.items()
    for ratio, (width, height) in shapes.items()
}
"""The pixel budget and the aspect ratio of each value of `parameters.size`."""

_REFERENCES = ("reference_image", "reference_video")
_PICTURES = ("first_frame", "last_frame")
_SOUNDS = ("driving_audio", "reference_audio")
_MEDIA: Mapping[Kind, tuple[str, ...]] = {
    "i2v": (*_PICTURES, "first_clip", *_SOUNDS),
    "r2v": (*_REFERENCES, "first_frame"),
    "t2v": _SOUNDS,
}
_NAMES = {
    # Fields of `Request` by their names in this API. The others have the same name.
    "image": "input.img_url",
    "last_image": "input.last_frame_url",
    "first_clip": "input.media",
    "references": "input.reference_urls",
    "audio": "input.audio_url",
    "prompt": "input.prompt",
    "negative_prompt": "input.negative_prompt",
    "seconds": "parameters.duration",
    "seed": "parameters.seed",
    "shot_type": "parameters.shot_type",
    "enable_prompt_expansion": "parameters.prompt_extend",
    "generate_audio": "parameters.audio",
}
_FIELD = re.compile(r'^field "(\w+)')
_MISSING = re.compile(r'field "(.+)" is required')


class ParameterError(Exception):
    """Raised for a wrong request. `code` is an error code of this API, and the text is its
    message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Model:
    """A model of this door. The usage of a `flash` model says whether there was sound."""

    kind: Kind
    flash: bool = False
    ratio: bool = False

    @property
    def task(self) -> Task:
        return "image-to-video" if self.kind == "i2v" else "reference-to-video"


MODELS: Mapping[str, Model] = {
    "wan2.6-i2v": Model("i2v"),
    "wan2.6-i2v-us": Model("i2v"),
    "wan2.6-i2v-flash": Model("i2v", flash=True),
    "wan2.6-r2v": Model("r2v"),
    "wan2.6-r2v-flash": Model("r2v", flash=True),
    "wan2.6-t2v": Model("t2v"),
    "wan2.6-t2v-us": Model("t2v"),
    "wan2.7-i2v": Model("i2v"),
    "wan2.7-r2v": Model("r2v", ratio=True),
    "wan2.7-t2v": Model("t2v", ratio=True),
}


@dataclass(frozen=True)
class Asked:
    """A request: the fields of a `Request`, and the values that its answers repeat (`payload`)."""

    model: str
    fields: dict[str, Any]
    payload: dict[str, Any]


def parse(body: object, serves: Callable[[Task], bool] = lambda task: True) -> Asked:
    """Parse a decoded body. Raises `ParameterError`. A model whose task nothing `serves` is
    unknown."""
    if not isinstance(body, Mapping):
        raise ParameterError("BadRequest.IllegalInput", "The input parameter requires json format.")
    if not (name := body.get("model")):
        sentence = 'Required parameter "model" missing from request.'
        raise ParameterError("BadRequest.EmptyModel", sentence)
    if not (given := _object(body, "input")):
        sentence = "Required input parameter missing from request."
        raise ParameterError("BadRequest.EmptyInput", sentence)
    model = MODELS.get(name) if isinstance(name, str) else None
    if model is None or not serves(model.task):
        raise ParameterError("InvalidParameter", "Model not exist.")
    parameters = _object(body, "parameters")
    for said in (body, given, parameters):
        if (found := not_read(said, ("last_frame_url",))) is not None:
            raise ParameterError("InvalidParameter", found[1])
    fields, warnings = _fields(model, given, parameters)
    try:
        order = parse_request(fields).order()
    except InvalidRequest as error:
        raise ParameterError("InvalidParameter", _named(str(error))) from None
    prompt = given.get("prompt")
    payload = {
        "prompt": prompt[:PROMPT_MAX_CHARACTERS] if isinstance(prompt, str) else None,
        "seconds": order.duration,
        "budget": order.size,
        "ratio": order.aspect_ratio,
        "audio": order.sound is not False,
        "warnings": warnings,
    }
    return Asked(str(name), fields, payload)


def size_of(budget: str, ratio: str) -> str:
    """The size of a clip without a picture, in this API's format."""
    return next(size for size, shape in _SIZES.items() if shape == (budget, ratio))


def _object(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = body.get(name)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise _wrong(name, "an object")
    return {key: value for key, value in found.items() if value is not None}


def _wrong(name: str, allowed: str) -> ParameterError:
    return ParameterError("InvalidParameter", f'field "{name}" must be {allowed}')


def _named(sentence: str) -> str:
    """Replace the names of `Request` fields in a sentence with the names of this API."""
    sentence = _FIELD.sub(lambda found: f'field "{_NAMES.get(found[1], found[1])}', sentence)
    missing = _MISSING.fullmatch(sentence)
    return f"Field required: {missing[1]}" if missing else sentence


# --- the fields of a `Request` -------------------------------------------------------------------


def _fields(
    model: Model, given: dict[str, Any], parameters: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the same clip as the fields of a `Request`, and one warning for each thing that the
    server will not do."""
    if given.get("template"):
        raise ParameterError("InvalidParameter", 'field "input.template" is not supported here')
    media = _Media(model.kind, given.get("media"))
    audio = parameters.get("audio")
    budget, ratio = _shape(model, parameters)
    fields = {
        "prompt": given.get("prompt"),
        "negative_prompt": given.get("negative_prompt"),
        "audio": None if audio is False else given.get("audio_url") or media.of(*_SOUNDS),
        "size": budget,
        "seconds": parameters.get("duration", 5),
        "shot_type": parameters.get("shot_type", "single"),
        "seed": _seed(parameters.get("seed")),
        "enable_prompt_expansion": parameters.get("prompt_extend", True),
        "enable_safety_checker": True,
        "generate_audio": True if audio is None else audio,
    }
    if model.kind == "i2v":
        fields |= _pictures(given, media)
        if not given.get("prompt"):
            fields["prompt"] = _DEFAULT_PROMPT
    else:
        fields |= {"references": _references(model, given, media), "aspect_ratio": ratio}
    if model.kind == "r2v" and fields["shot_type"] == "multi":
        fields["enable_prompt_expansion"] = True  # the page does not require it
    warnings = list(media.warnings)
    if _flag(parameters, "watermark"):
        warnings.append("watermark is ignored: this server draws none")
    return fields, warnings


class _Media:
    """The array `input.media` of 2.7, by type. Raises `ParameterError`."""

    def __init__(self, kind: Kind, given: object) -> None:
        self.warnings: list[str] = []
        self._found: list[tuple[str, str]] = []
        if given is not None and not isinstance(given, list):
            raise _wrong("input.media", "an array")
        for number, one in enumerate(given or ()):
            name = f"input.media[{number}]"
            if not isinstance(one, Mapping) or not isinstance(one.get("url"), str):
                raise _wrong(name, 'an object with "type" and "url"')
            if one.get("type") not in _MEDIA[kind]:
                raise _wrong(f"{name}.type", f"one of {', '.join(_MEDIA[kind])}")
            if one["type"] not in _REFERENCES and self.of(one["type"]) is not None:
                sentence = f'field "{name}.type": "{one["type"]}" may occur only once'
                raise ParameterError("InvalidParameter", sentence)
            if one.get("reference_voice"):
                self.warnings.append(f"The voice of {name} is not used")
            self._found.append((one["type"], one["url"]))

    def of(self, *kinds: str) -> str | None:
        return next(self.all(*kinds), None)

    def all(self, *kinds: str) -> Iterator[str]:
        """The media of these kinds in their order, which numbers the references."""
        return (url for kind, url in self._found if kind in kinds)


def _pictures(given: Mapping[str, Any], media: _Media) -> dict[str, Any]:
    first = given.get("img_url") or given.get("first_frame_url") or media.of("first_frame")
    last = given.get("last_frame_url") or media.of("last_frame")
    clip = media.of("first_clip")
    if clip is not None and first is not None:
        sentence = 'a "first_clip" cannot be used with a "first_frame"'
        raise ParameterError("InvalidParameter", f'field "input.media": {sentence}')
    if clip is not None:
        return {"first_clip": clip, "last_image": _picture(last)}
    if first is None:
        raise ParameterError("InvalidParameter", "Field required: input.img_url")
    return {"image": _picture(first), "last_image": _picture(last)}


def _picture(value: object) -> object:
    """Accept the bare base64 of a file too, which `@ai-sdk/alibaba` sends."""
    return as_url(value) if isinstance(value, str) else value


def _references(model: Model, given: Mapping[str, Any], media: _Media) -> object:
    if model.kind == "t2v":
        return []
    if media.of("first_frame"):
        sentence = 'a "first_frame" cannot be used with references here'
        raise ParameterError("InvalidParameter", f'field "input.media": {sentence}')
    found = given.get("reference_urls") or given.get("reference_video_urls")
    found = found or list(media.all(*_REFERENCES))
    if not found:
        raise ParameterError("InvalidParameter", "Field required: input.reference_urls")
    return found


def _shape(model: Model, parameters: Mapping[str, Any]) -> tuple[str, str]:
    """Return the pixel budget and the aspect ratio. A picture overrides the aspect ratio."""
    size = parameters.get("size")
    if size is not None and model.kind != "i2v":
        if not isinstance(size, str) or size not in _SIZES:
            sentence = f"The size is not match {', '.join(_SIZES)}"
            raise ParameterError("InvalidParameter", sentence)
        return _SIZES[size]
    tier, ratio = parameters.get("resolution", "1080P"), parameters.get("ratio", "16:9")
    if not isinstance(tier, str) or tier.upper() not in _TIERS:
        raise _wrong("parameters.resolution", f"one of {', '.join(_TIERS)}")
    if ratio not in get_args(AspectRatio):
        raise _wrong("parameters.ratio", f"one of {', '.join(get_args(AspectRatio))}")
    return _TIERS[tier.upper()], str(ratio)


def _seed(value: object) -> object:
    """The default is random. This API does not accept -1."""
    if value is None:
        return -1
    if isinstance(value, int) and not 0 <= value <= SEED_MAX:
        raise _wrong("parameters.seed", f"an integer from 0 to {SEED_MAX}")
    return value


def _flag(parameters: Mapping[str, Any], name: str) -> bool:
    found = parameters.get(name, False)
    if not isinstance(found, bool):
        raise _wrong(f"parameters.{name}", "a boolean")
    return found
