"""Validates the fields of a request, and writes the sentence for each wrong value.

A validator returns the cleaned value, or raises pydantic's error with that sentence as its message.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

Size = Literal["1280*720", "1920*1080"]
TextSize = Literal["1280*720", "720*1280", "1920*1080", "1080*1920"]
"""The sizes of clips without a first picture, as in Runpod's `wan-2-6-t2v`."""

Duration = Literal[5, 10, 15]
ShotType = Literal["single", "multi"]
AspectRatio = Literal["16:9", "9:16", "1:1", "4:3", "3:4"]

PROMPT_MAX_CHARACTERS = 1500
NEGATIVE_PROMPT_MAX_CHARACTERS = 500
REFERENCES_MAX = 5
"""The limit of DashScope's `wan2.6-r2v` for pictures and videos together."""

SECONDS = range(2, 16)
"""The lengths that a clip can have. `Duration` has those that the documented pages name."""

SEED_MAX = 2**31 - 1
_SIZE_NAMES = {"720p": "1280*720", "1080p": "1920*1080"}
PORTRAITS: Mapping[str, Size] = {"720*1280": "1280*720", "1080*1920": "1920*1080"}
"""Portrait sizes, which also mean 9:16, and their pixel budgets."""

_SHOWN_CHARACTERS = 60
_INTEGRAL = re.compile(r" *[+-]?[0-9]{1,18} *")


def described(value: object) -> str:
    """A JSON value for an error message: its type, and the value itself if it is short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean {json.dumps(value)}"
    if isinstance(value, int | float):
        shown = (
            json.dumps(value) if isinstance(value, float) or abs(value) < 10**18 else "too large"
        )
        return f"number {shown}"
    if isinstance(value, str):
        shown = json.dumps(value[: _SHOWN_CHARACTERS + 1])
        if len(shown) > _SHOWN_CHARACTERS + 2:  # even if a few characters become long escapes
            shown = shown[: _SHOWN_CHARACTERS + 1].rstrip("\\") + '..."'
        return f"string {shown}"
    if isinstance(value, list | tuple):
        return "array"
    return "object" if isinstance(value, Mapping) else type(value).__name__


def refusal(sentence: str) -> PydanticCustomError:
    """The error with `sentence` as its message."""
    return PydanticCustomError("invalid_field", "{sentence}", {"sentence": sentence})


def _refuse(name: str, allowed: str, value: object) -> PydanticCustomError:
    return refusal(f'field "{name}" must be {allowed}, got {described(value)}')


def _clean(text: str) -> str:
    """The text without NUL and lone surrogates, which tokenizers and logs refuse."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


# --- text ----------------------------------------------------------------------------------------


def _text(name: str, value: object, max_characters: int) -> str:
    if not isinstance(value, str):
        raise _refuse(name, "a string", value)
    return _clean(value)[:max_characters]


def prompt(value: object) -> str:
    text = _text("prompt", value, PROMPT_MAX_CHARACTERS)
    if not text.strip():
        raise _refuse("prompt", "a string that is not blank", value)
    return text


def negative_prompt(value: object) -> str | None:
    text = _text("negative_prompt", value, NEGATIVE_PROMPT_MAX_CHARACTERS)
    return text if text.strip() else None


def cut_sentence(name: str, kept: int, given: int, why: str) -> str:
    """The sentence of a result that used only the first `kept` of `given` characters of a text."""
    return f"The {name} was cut after {kept} of its {given} characters: {why}"


def cuts(payload: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each text of the caller that was cut."""
    most = {
        "prompt": PROMPT_MAX_CHARACTERS,
        "negative_prompt": NEGATIVE_PROMPT_MAX_CHARACTERS,
    }
    for name, kept in most.items():
        if isinstance(text := payload.get(name), str) and (given := len(_clean(text))) > kept:
            yield cut_sentence(name.replace("_", " "), kept, given, "no more are taken")


# --- media ---------------------------------------------------------------------------------------


def source(name: str) -> BeforeValidator:
    """A URL or a data URI, not yet fetched."""
    return BeforeValidator(lambda value: _source(name, value))


def _source(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _refuse(name, "a string", value)
    text = _clean(value).strip()
    if not text.lower().startswith(("http://", "https://", "data:")):
        raise refusal(f"Invalid {name} URL: it must start with http://, https:// or data:")
    return text


def references(value: object) -> tuple[str, ...]:
    """URLs or data URIs. Their order identifies the subjects."""
    if not isinstance(value, list | tuple):
        raise _refuse("references", "an array of strings", value)
    if len(value) > REFERENCES_MAX:
        raise refusal(
            f'field "references" must have at most {REFERENCES_MAX} entries, got {len(value)}'
        )
    return tuple(_source(f"references[{index}]", one) for index, one in enumerate(value))


# --- numbers and choices -------------------------------------------------------------------------


def _integer(name: str, allowed: str, value: object) -> int:
    """An integer. Integral strings and integral floats are accepted, booleans are not."""
    if isinstance(value, str) and _INTEGRAL.fullmatch(value):
        return int(value)
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _refuse(name, allowed, value)
    return value


def seed(value: object) -> int:
    number = _integer("seed", "an integer", value)
    if not -1 <= number <= SEED_MAX:
        raise _refuse("seed", f"an integer from -1 to {SEED_MAX}", value)
    return number


def duration(value: object) -> int:
    allowed = f"one of {json.dumps(get_args(Duration))}"
    seconds = _integer("duration", allowed, value)
    if seconds not in get_args(Duration):
        raise _refuse("duration", allowed, value)
    return seconds


def seconds(value: object) -> int:
    allowed = f"an integer from {SECONDS[0]} to {SECONDS[-1]}"
    number = _integer("seconds", allowed, value)
    if number not in SECONDS:
        raise _refuse("seconds", allowed, value)
    return number


def size(value: object, choices: Any = Size) -> str:
    name = value.strip().lower() if isinstance(value, str) else ""
    name = _SIZE_NAMES.get(name, name)
    if name not in get_args(choices):
        raise _refuse("size", f"one of {json.dumps(get_args(choices))}", value)
    return name


def text_size(value: object) -> str:
    return size(value, TextSize)


def one_of(name: str, choices: Any) -> BeforeValidator:
    """One of the strings of a `Literal`."""

    def check(value: object) -> str:
        if value not in get_args(choices):
            raise _refuse(name, f"one of {json.dumps(get_args(choices))}", value)
        return str(value)

    return BeforeValidator(check)


def boolean(name: str) -> BeforeValidator:
    def check(value: object) -> bool:
        if not isinstance(value, bool):
            raise _refuse(name, "a boolean", value)
        return value

    return BeforeValidator(check)
