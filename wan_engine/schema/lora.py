"""Defines the LoRA files that a request names, and validates its field `loras`.

A name is that of a file in the operator's folder, without its ending, and never a path out of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from wan_engine.schema.fields import described, refusal

LoraExpert = Literal["both", "high", "low"]

LORAS_MAX = 4
LORA_SCALE_MAX = 4.0
"""Larger scales, and their negatives, give noise."""

LORA_NAME_MAX_CHARACTERS = 200
_ENDING = ".safetensors"
_KEYS = ("name", "scale", "expert")
_NAME = "a name without its folder's path, such as style or people/anna"


@dataclass(frozen=True)
class Lora:
    """A LoRA of the operator's folder, by its `name`. Without an `expert`, each half of a pair goes
    into its own expert, and any other file into both."""

    name: str
    scale: float = 1.0
    expert: LoraExpert | None = None

    def __str__(self) -> str:
        only = f" ({self.expert})" if self.expert in ("high", "low") else ""
        return f"{self.name} at {self.scale:g}{only}"


def loras(value: object) -> tuple[Lora, ...]:
    """Validate an array of names or objects. Raises pydantic's error with one sentence."""
    if not isinstance(value, list | tuple):
        raise refusal(
            f'field "loras" must be an array of at most {LORAS_MAX} names or objects, '
            f"got {described(value)}"
        )
    if len(value) > LORAS_MAX:
        raise refusal(f'field "loras" must have at most {LORAS_MAX} entries, got {len(value)}')
    found = tuple(_one(f"loras[{index}]", one) for index, one in enumerate(value))
    for index, one in enumerate(found):
        for before, other in enumerate(found[:index]):
            if one.name == other.name and not _apart(one, other):
                raise refusal(
                    f'field "loras[{index}].name" must differ from that of "loras[{before}]", '
                    f"got {described(one.name)}"
                )
    return found


def _apart(one: Lora, other: Lora) -> bool:
    """Whether the two are for different experts."""
    return {one.expert, other.expert} == {"high", "low"}


def _one(field: str, value: object) -> Lora:
    if isinstance(value, Lora):
        return value
    if isinstance(value, str):
        return Lora(_name(field, value))
    if not isinstance(value, Mapping):
        raise refusal(f'field "{field}" must be a name or an object, got {described(value)}')
    given = {key: one for key, one in value.items() if one is not None}
    for key in given:
        if key not in _KEYS:
            raise refusal(
                f'field "{field}" must have {", ".join(_KEYS)} and nothing else, '
                f"got {described(str(key))}"
            )
    if "name" not in given:
        raise refusal(f'field "{field}.name" is required')
    return Lora(
        _name(f"{field}.name", given["name"]),
        _scale(f"{field}.scale", given.get("scale", 1.0)),
        _expert(f"{field}.expert", given.get("expert")),
    )


def _name(field: str, value: object) -> str:
    name = value.strip().removesuffix(_ENDING) if isinstance(value, str) else ""
    if not is_lora_name(name):
        raise refusal(f'field "{field}" must be {_NAME}, got {described(value)}')
    return name


def is_lora_name(name: str) -> bool:
    """Whether `name` is valid in a request."""
    return (
        0 < len(name) <= LORA_NAME_MAX_CHARACTERS
        and name == name.strip()
        and name.isprintable()
        and "\\" not in name
        and not any(part in ("", ".", "..") for part in name.split("/"))
    )


def _scale(field: str, value: object) -> float:
    most = LORA_SCALE_MAX  # NaN is not between the two
    if isinstance(value, bool) or not (isinstance(value, int | float) and -most <= value <= most):
        allowed = f"a number from {-most:g} to {most:g}"
        raise refusal(f'field "{field}" must be {allowed}, got {described(value)}')
    return float(value)


def _expert(field: str, value: object) -> LoraExpert | None:
    if value is None or value in get_args(LoraExpert):
        return cast("LoraExpert | None", value)
    names = ", ".join(f'"{one}"' for one in get_args(LoraExpert))
    raise refusal(f'field "{field}" must be one of [{names}], got {described(value)}')
