"""Reads the parameters of `/v1/videos`, from JSON or a form, as functions of plain values.

The first five fields and their defaults are OpenAI's (`prompt`, `model`, `seconds`, `size`,
`input_reference`). The others are vLLM-Omni's, except `last_image`, `shot_type` and the two
switches, which are this engine's own. A clip may be any whole number of seconds from 2 to 15 long.
`lora` is an object with a name or a list of them, as vLLM-Omni has it. A path is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from wan_engine.errors import InvalidRequest
from wan_engine.gateway.http.body import parse_json
from wan_engine.gateway.http.form import Form, Upload
from wan_engine.plan import NAMED_SIZES
from wan_engine.schema import PROMPT_MAX_CHARACTERS, AspectRatio, Task, parse_request

MODELS: Mapping[str, str] = {
    "i2v": "wan-2-6-i2v",
    "r2v": "wan-2-6-r2v",
    "t2v": "wan-2-6-t2v",
}
"""The model name in answers, if the request does not name one."""

DEFAULT_SECONDS = 4
DEFAULT_SIZE = "720x1280"
_MODEL_MAX_CHARACTERS = 64

_LIKE_SORA = {"1024x1792": "1080x1920", "1792x1024": "1920x1080"}
"""Sizes of the hosted page that the engine does not make. They map to the nearest budget and
shape."""

_SHAPES: Mapping[str, tuple[str, str]] = {
    f"{width}x{height}": (budget, f"{ratio[0]}:{ratio[1]}")
    for budget, shapes in NAMED_SIZES.items()
    for ratio, (width, height) in shapes.items()
}
SIZES = (*_SHAPES, *_LIKE_SORA)

SWITCHES = ("generate_sound", "keep_first_clip", "enable_prompt_expansion", "enable_safety_checker")
_MEDIA = (
    *("input_reference", "image_reference", "video_reference", "audio_reference"),
    *("references", "last_image", "first_clip"),
)
_UNUSED = (
    *("fps", "num_inference_steps", "guidance_scale", "guidance_scale_2", "boundary_ratio"),
    *("flow_shift", "true_cfg_scale", "sound_duration", "enable_frame_interpolation"),
    *("extra_params", "quality"),
)
"""Fields of vLLM-Omni that the server decides itself. They are ignored with a warning."""

_REFUSED = (
    *("control_reference", "source_video", "source_audio", "video_noise_mask"),
    *("audio_noise_mask", "characters"),
)
"""Fields that change the clip, so that the server refuses them."""

_NAMES = {
    "image": "input_reference",
    "references": "input_reference",
    "audio": "audio_reference",
    "generate_audio": "generate_sound",
    "loras": "lora",
}
_LORA_KEYS = {"lora_name": "name", "adapter": "name", "lora_scale": "scale"}
"""Other names of the keys of `lora` (vllm_omni/entrypoints/openai/utils.py,
`parse_lora_request`)."""

_FIELD = re.compile(r'^(?:field "|Invalid )(\w+)')
_NESTED = re.compile(r"(\w+)\[(\w+)\]")


class ParameterError(Exception):
    """Raised for a wrong request. `param` is the field, and the text is for the caller."""

    def __init__(self, param: str | None, message: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class Asked:
    """A request: the fields of a `Request`, and the values that its answers repeat (`payload`).

    `payload` also keeps the caller's own name of the model, because jobs are counted by our names.
    """

    model: str
    task: Task
    fields: dict[str, Any]
    payload: dict[str, Any]


@dataclass(frozen=True)
class _Medium:
    url: object
    is_video: bool = False


def of_form(form: Form) -> dict[str, Any]:
    """Return the fields of a form in the structure of JSON. Raises `Refusal` and `ParameterError`.

    OpenAI's client sends an object as `input_reference[image_url]`, and an array as `references[]`.
    """
    given: dict[str, Any] = {}
    for name, values in form.items():
        nested = _NESTED.fullmatch(name)
        field = nested[1] if nested else name.removesuffix("[]")
        if field not in _MEDIA and any(isinstance(value, Upload) for value in values):
            raise ParameterError(field[:64], f'field "{field[:64]}" must not be a file')
        value = values if len(values) > 1 else _typed(field, values[0])
        given |= {field: {nested[2]: value} if nested else value}
    return given


def _typed(name: str, value: str | Upload) -> object:
    if isinstance(value, Upload):
        return value
    if name in SWITCHES and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if name in (*_MEDIA, "lora") and value.lstrip()[:1] in ("{", "["):
        return parse_json(value.encode())
    return value or None


def parse(body: object, serves: Callable[[Task], bool] = lambda task: True) -> Asked:
    """Parse a body. Raises `ParameterError`, also if nothing `serves` its task."""
    if not isinstance(body, Mapping):
        raise ParameterError(None, "The body must be a JSON object or a form")
    given = {name: value for name, value in body.items() if value is not None}
    for name in _REFUSED:
        if name in given:
            raise ParameterError(name, f'field "{name}" is not supported here')
    size, budget, ratio = _size(given)
    media, kind = _media(given)
    fields = {
        **{name: given.get(name) for name in ("prompt", "negative_prompt", "seed", "shot_type")},
        **{name: given.get(name) for name in SWITCHES if name != "generate_sound"},
        **media,
        "loras": _loras(given.get("lora")),
        "size": budget,
        "seconds": _seconds(given),
        "generate_audio": given.get("generate_sound", True),
    }
    if kind != "i2v":
        fields["aspect_ratio"] = ratio
    try:
        order = parse_request(fields).order()
    except InvalidRequest as error:
        raise _named(str(error)) from None
    if not serves(order.task):
        raise ParameterError("model", f"No model is configured for {order.task}")
    unused = [name for name in _UNUSED if given.get(name) not in (None, False, "false")]
    payload = {
        "model": _model(given.get("model"), kind),
        "prompt": str(given["prompt"])[:PROMPT_MAX_CHARACTERS],
        "seconds": order.duration,
        "size": size,
        "warnings": [f"Not used here: {', '.join(unused)}"] if unused else [],
    }
    return Asked(MODELS[kind], order.task, fields, payload)


def _loras(value: object) -> object:
    """Return the entries of `loras`, with the keys of a `Request`. A key with two names stays, and
    is refused later."""
    if value is None or value == "":
        return None
    return [
        {
            key if _LORA_KEYS.get(key, key) in one else _LORA_KEYS.get(key, key): said
            for key, said in one.items()
        }
        if isinstance(one, Mapping)
        else one
        for one in (value if isinstance(value, list) else [value])
    ]


def _named(sentence: str) -> ParameterError:
    """Replace the names of `Request` fields in a sentence with the names of this API."""
    found = _FIELD.match(sentence)
    if found is None:
        return ParameterError(None, sentence)
    name = _NAMES.get(found[1], found[1])
    return ParameterError(name, sentence.replace(found[1], name, 1))


def _model(name: object, kind: str) -> str:
    """Check the name that the caller chose. It does not change what is rendered."""
    if name is None:
        return MODELS[kind]
    if not isinstance(name, str) or not 0 < len(name) <= _MODEL_MAX_CHARACTERS:
        allowed = f"a string of up to {_MODEL_MAX_CHARACTERS} characters"
        raise ParameterError("model", f'field "model" must be {allowed}')
    return name


# --- media ---------------------------------------------------------------------------------------


def _media(given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the media as `Request` fields, with the task. One picture is the first frame; a video
    or several media are references; without media, the clip is made from text."""
    names = ("input_reference", "image_reference", "video_reference", "references")
    found = [medium for name in names for medium in _of(name, given.get(name))]
    fields = {"audio": _one(given, "audio_reference"), "last_image": _one(given, "last_image")}
    if (clip := _one(given, "first_clip")) is not None:
        if found:
            sentence = 'field "first_clip" cannot be used with "input_reference"'
            raise ParameterError("first_clip", sentence)
        return {**fields, "first_clip": clip}, "i2v"
    as_references = "references" in given or any(medium.is_video for medium in found)
    if len(found) == 1 and not as_references:
        return {**fields, "image": found[0].url}, "i2v"
    if fields["last_image"] is not None:
        sentence = 'field "last_image" needs one picture in "input_reference"'
        raise ParameterError("last_image", sentence)
    references = [medium.url for medium in found]
    return {**fields, "references": references}, "r2v" if references else "t2v"


def _one(given: Mapping[str, Any], name: str) -> object:
    found = [medium.url for medium in _of(name, given.get(name))]
    if len(found) > 1:
        raise ParameterError(name, f'field "{name}" must be one file or link')
    return found[0] if found else None


def _of(name: str, value: object) -> Iterator[_Medium]:
    """The media in a field: files, URLs, or objects that contain one."""
    if value is None or value == "":
        return
    if isinstance(value, list):
        for one in value:
            yield from _of(name, one)
    elif isinstance(value, Upload):
        yield _Medium(value.url, value.is_video)
    elif isinstance(value, Mapping):
        yield _of_object(name, value)
    else:
        yield _Medium(value, name == "video_reference")


def _of_object(name: str, value: Mapping[str, Any]) -> _Medium:
    for key in ("image_url", "video_url", "audio_url"):
        found = value.get(key)
        if isinstance(found, Mapping):  # the format of chat completions
            found = found.get("url")
        if isinstance(found, str):
            return _Medium(found, key == "video_url")
    if "file_id" in value:
        sentence = f'field "{name}": there are no files here, send "image_url" or the file itself'
        raise ParameterError(name, sentence)
    raise ParameterError(name, f'field "{name}" must be a file, or an object with "image_url"')


# --- shape and length ----------------------------------------------------------------------------


def _size(given: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the size of a clip without a picture, the pixel budget, and the aspect ratio."""
    size = given.get("size")
    if size is None and "width" in given and "height" in given:
        size = f"{given['width']}x{given['height']}"
    if size is None and (ratio := given.get("aspect_ratio")) is not None:
        if ratio not in get_args(AspectRatio):
            allowed = ", ".join(get_args(AspectRatio))
            raise ParameterError("aspect_ratio", f'field "aspect_ratio" must be one of {allowed}')
        size = next(name for name, shape in _SHAPES.items() if shape == ("1280*720", ratio))
    size = DEFAULT_SIZE if size is None else size
    if size not in SIZES:
        raise ParameterError("size", f'field "size" must be one of {", ".join(SIZES)}')
    size = _LIKE_SORA.get(size, size)
    return size, *_SHAPES[size]


def _seconds(given: Mapping[str, Any]) -> object:
    """Return `seconds`, or the duration of `num_frames` at `fps`. One frame more is accepted,
    because some clients count it."""
    if "seconds" in given or "num_frames" not in given:
        return given.get("seconds", DEFAULT_SECONDS)
    try:
        frames, fps = int(given["num_frames"]), int(given.get("fps", 0))
        seconds = round(frames / fps)
        if abs(frames - seconds * fps) <= 1:
            return seconds
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        pass
    sentence = 'field "num_frames" must be whole seconds at "fps": or say "seconds"'
    raise ParameterError("num_frames", sentence)
