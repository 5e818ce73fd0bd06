"""All settings in one class, composed of a file per topic.

Importing it reads no variable. The descriptions of the fields, in their order, become the tables of
`python -m wan_engine settings`, of docs/settings.md and of Runpod's Hub. `environment.py` reads
variables that are not ours.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from wan_engine.errors import ConfigurationError
from wan_engine.settings.gateway import GatewaySettings
from wan_engine.settings.gpu import GpuSettings
from wan_engine.settings.jobs import JobSettings
from wan_engine.settings.media import InputSettings, OutputSettings, ShapeSettings
from wan_engine.settings.model import ModelSettings, OwnLora
from wan_engine.settings.prompts import PromptSettings, SafetySettings
from wan_engine.settings.retired import RetiredSettings
from wan_engine.settings.storage import StorageSettings
from wan_engine.settings.values import cleaned, secret_parts, url

__all__ = ["VERSION", "Described", "OwnLora", "Settings", "described", "env_name", "secret_values"]

VERSION = "0.1.0"
"""The version of this package, as `--version`, logs and the mp4's metadata name it."""

log = logging.getLogger(__name__)

_OURS = "Value error, "  # pydantic's prefix to our messages


class Settings(
    # pydantic takes the fields of the last base first: the tables have the reverse of this order.
    RetiredSettings,
    GatewaySettings,
    JobSettings,
    StorageSettings,
    OutputSettings,
    InputSettings,
    SafetySettings,
    PromptSettings,
    ShapeSettings,
    GpuSettings,
    ModelSettings,
    BaseSettings,
):
    """`Settings.load()` reads the environment. From Python, `Settings(model="wan-tiny", ...)`."""

    model_config = SettingsConfigDict(
        env_prefix="WAN_",
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        env_ignore_empty=True,
        hide_input_in_errors=True,  # it may be a key
        enable_decoding=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _clean(cls, value: object, info: ValidationInfo) -> object:
        name = str(info.field_name)
        # These may have one line per entry.
        several = isinstance(cls.model_fields[name].default, tuple | dict)
        return cleaned(value, env_name(name), lines=several)

    @field_validator("lora", "safety_image_labels", "prices", mode="before")
    @classmethod
    def _json(cls, value: object) -> object:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError:
            raise ValueError("it must be JSON") from None

    @classmethod
    def load(cls) -> Settings:
        """The settings of this process. Raises `ConfigurationError` naming each variable that is
        wrong."""
        try:
            _check_hub()
            settings = cls()
        except ValidationError as error:
            reasons: dict[str, list[str]] = {}  # several for a setting of several types
            for one in error.errors(include_url=False):
                told = reasons.setdefault(env_name(str(one["loc"][0])), [])
                told.append(one["msg"].removeprefix(_OURS if not told else "Input should be "))
            wrong = [f"{name} is wrong: {', or '.join(told)}." for name, told in reasons.items()]
            where = "`python -m wan_engine settings` describes each setting."
            raise ConfigurationError(f"{' '.join(wrong)} {where}") from None
        for name, field in RetiredSettings.model_fields.items():
            if name in settings.model_fields_set:
                log.warning("%s is deprecated: %s", env_name(name), field.description)
        return settings

    @property
    def in_flight_of_key_bytes(self) -> int:
        """Bytes of one key's requests in flight: a quarter of the limit for all keys."""
        return self.in_flight_key_bytes or max(1, self.in_flight_max_bytes // 4)

    def with_secrets(self) -> dict[str, Any]:
        """The settings as JSON, secrets included, for `Settings(**values)` in a child process. No
        other dump includes the secrets."""
        values = self.model_dump(mode="json")
        return values | {name: found.get_secret_value() for name, found in _secrets(self).items()}


def secret_values(settings: Settings) -> list[str]:
    """The keys and passwords in these settings, as text; of a URL, its secret parts."""
    return [part for found in _secrets(settings).values() for part in secret_parts(found)]


def _secrets(settings: Settings) -> dict[str, SecretStr]:
    fields = {name: getattr(settings, name) for name in Settings.model_fields}
    return {name: value for name, value in fields.items() if isinstance(value, SecretStr)}


def _check_hub() -> None:
    """Check HF_ENDPOINT, because the Hub's client fails on a wrong one in the middle of a download.
    Raises `ConfigurationError`."""
    try:
        if endpoint := os.environ.get("HF_ENDPOINT"):
            url(endpoint)
    except ValueError as error:
        raise ConfigurationError(f"HF_ENDPOINT is wrong: {error}.") from None


@dataclass(frozen=True)
class Described:
    """A setting as docs/settings.md shows it."""

    variable: str
    default: str
    meaning: str


def described() -> list[Described]:
    """Every setting except deprecated ones, in the order of the fields."""
    rows = []
    for name, field in Settings.model_fields.items():
        if name in RetiredSettings.model_fields:
            continue
        default = field.default
        shown = "" if default in (None, (), {}, "") else str(default)
        shown = ",".join(default) if isinstance(default, tuple) and shown else shown
        rows.append(Described(env_name(name), shown, field.description or ""))
    return rows


def env_name(field: str) -> str:
    """The environment variable of a field of `Settings`."""
    if field.isupper():
        return field
    return field.upper() if field.startswith("bucket_") else f"WAN_{field.upper()}"
