"""Builds `.runpod/hub.json` and `.runpod/tests.json` from the settings and the catalogue.

`make docs` writes them.
Schema: docs.runpod.io, hub/publishing-guide.
"""

from __future__ import annotations

import base64
import io
import json
import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from builder.gpu_table import CARDS
from wan_engine.catalog import FALLBACK
from wan_engine.settings import Settings, described, env_name
from wan_engine.settings.gateway import GatewaySettings
from wan_engine.settings.retired import RetiredSettings

_SHOWN = ("model", "safety", "fps", "upscale", "prompt_url", "public_base_url")
"""Shown at once, with the bucket. The others are under "advanced"."""

_LEFT_OUT = ("device", "output_dir", "scratch_dir", "allow_private_urls")
"""Useless or harmful on an endpoint."""

_CAPITALS = {word.lower(): word for word in ("API", "CRF", "FPS", "ID", "LoRA", "RIFE", "URL")}
"""How the form writes these words of a setting's name."""

_FINE = 0.01
"""How far the form stays from a limit that a setting refuses, because the form includes limits."""

_SELDOM = (
    *("image_min_side", "image_max_side", "image_max_bytes", "audio_max_seconds"),
    *("audio_max_bytes", "fetch_seconds", "scratch_min_gb"),
    *("reference_max_bytes", "reference_max_seconds"),
    *("lora_unused", "reference_model", "speech_model", "video_sound_model", "pool_gb"),
    *("sound_model", "generate_audio", "lora_dir", "previews", "cache_dir"),
)
"""Left out, because Runpod's templates hold 50 variables. Their defaults are those of the hosted
API, and you can add them to an endpoint by hand."""

POOLS = {card.pool: card.gpu for card in CARDS if card.pool}
"""Runpod's names of cards that fit every preset's model, best first. AMPERE_24 is missing: it has
no float8 matrices, and would need 75 GB of host memory."""

_DISK_GB = 40
"""Container disk in GB. The image with its classifiers is 8 GB, a job's files are less than 1 GB,
and the SDK refuses to start with less than a tenth free. Models are on a volume."""

_CUDA = ["13.0"]
"""The CUDA version of the wheels in requirements.lock."""

_PRESETS = {
    "40-step A14B": {"WAN_MODEL": "wan2.2-i2v-a14b"},
    "Fast four-step": {"WAN_MODEL": "wan2.2-i2v-a14b-4step"},
    "24 GB 5B": {"WAN_MODEL": "wan2.2-ti2v-5b"},
    "Smoke": {
        "WAN_MODEL": FALLBACK,
        "WAN_STORAGE": "local",
        "WAN_SAFETY": "auto",
        "WAN_COMPILE": "required",  # as for a real model, although the toy is slower with it
    },
}


def hub() -> dict[str, Any]:
    """The content of hub.json."""
    return {
        "title": "Wan 2.2 image-to-video with the WAN 2.6 API",
        "description": "The hosted wan-2-6-i2v API, request and answer, on open Wan 2.2 weights",
        "type": "serverless",
        "category": "video",
        "config": {
            "runsOn": "GPU",
            "containerDiskInGb": _DISK_GB,
            "gpuCount": 1,
            "gpuIds": ",".join(POOLS),
            "allowedCudaVersions": _CUDA,
            "presets": [
                {"name": name, "defaults": defaults} for name, defaults in _PRESETS.items()
            ],
            "env": [
                {"key": env_name(name), "input": _input(name, field)}
                for name, field in Settings.model_fields.items()
                if name not in (*_LEFT_OUT, *_SELDOM)
                # A worker has no gateway.
                and name not in (*GatewaySettings.model_fields, *RetiredSettings.model_fields)
            ],
        },
    }


def tests() -> dict[str, Any]:
    """The content of tests.json: one job without network, weights and bucket."""
    return {
        "tests": [
            {
                "name": "five seconds from a picture in the request",
                "input": {
                    "prompt": "A light moves over a wall",
                    "image": _picture(),
                    "duration": 5,
                    "seed": 1,
                },
                "timeout": 300_000,
            }
        ],
        "config": {
            "gpuTypeId": "NVIDIA GeForce RTX 4090",
            "gpuCount": 1,
            "env": [{"key": key, "value": value} for key, value in _PRESETS["Smoke"].items()],
            "allowedCudaVersions": _CUDA,
        },
    }


def _input(name: str, field: FieldInfo) -> dict[str, Any]:
    row = next(row for row in described() if row.variable == env_name(name))
    bucket = name.startswith("bucket_")
    shown: dict[str, Any] = {
        "name": _label(name),
        "description": row.meaning,
        "required": False,
        "advanced": not bucket and name not in _SHOWN,
    }
    kinds = _members(field.annotation)
    options = [value for kind in kinds for value in get_args(kind) if get_origin(kind) is Literal]
    default: Any = row.default
    if kinds == [bool]:
        shown |= {"type": "boolean", "trueValue": "1", "falseValue": "0"}
        default = bool(field.default)
    elif kinds in ([int], [float]):
        shown |= {"type": "number", **_limits(field)}
        default = field.default
    elif options and len(kinds) == 1:
        unset = [] if field.default in options else [{"label": "(not set)", "value": ""}]
        shown["type"] = "string"
        shown["options"] = unset + [{"label": value, "value": value} for value in options]
    else:
        shown["type"] = "string"
    if default is not None:
        shown["default"] = default
    return shown


def _members(annotation: Any) -> list[Any]:
    """The types of a field, without None and without annotations for pydantic."""
    if get_origin(annotation) in (Union, types.UnionType):
        found = [one for member in get_args(annotation) for one in _members(member)]
        return [one for one in found if one is not type(None)]
    if hasattr(annotation, "__metadata__"):
        return _members(get_args(annotation)[0])
    return [annotation]


def _label(name: str) -> str:
    """The name of a setting in words, with a capital at its start."""
    words = " ".join(_CAPITALS.get(word, word) for word in name.split("_"))
    return words[0].upper() + words[1:]


def _limits(field: FieldInfo) -> dict[str, float]:
    """The limits of the form, which are allowed values."""
    limits = {}
    for rule in field.metadata:
        for mark, name, inside in (
            *(("ge", "min", 0.0), ("le", "max", 0.0)),
            *(("gt", "min", _FINE), ("lt", "max", -_FINE)),
        ):
            if (limit := getattr(rule, mark, None)) is not None:
                limits[name] = limit + inside if inside else limit
    return limits


def _picture() -> str:
    """A ramp of black and white dots in the smallest allowed size, as a data URI. A BMP has the
    same bytes on every machine."""
    from PIL import Image

    picture = Image.linear_gradient("L").resize((240, 240)).convert("1")
    file = io.BytesIO()
    picture.save(file, "BMP")
    return "data:image/bmp;base64," + base64.b64encode(file.getvalue()).decode()


def text(content: dict[str, Any]) -> str:
    """The JSON text of the file."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
