"""Describes the models of the Oxen door as Oxen's models endpoint does.

Two pages of the hosted API give the schema different names, `json_request_schema` and
`request_schema`. This door returns both, with the same content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from wan_engine.gateway.doors.oxen import parameters
from wan_engine.schema import Task

IMAGE_TO_VIDEO = "wan-v2-6-image-to-video"
REFERENCE_TO_VIDEO = "wan-v2-6-reference-to-video"

_CREATED = 1_765_843_200
"""Unix seconds of 2025-12-16, the release date of Wan 2.6. The value is the same at each start."""

_DEVELOPER, _PROVIDER = "Alibaba", "oxen"


@dataclass(frozen=True)
class Model:
    """A model of this door. `schema` is the JSON Schema of its documented parameters. `parameters`
    reads all the parameters that it accepts.

    Texts and defaults of the schema are the page's, which fills its examples with the defaults. A
    missing parameter never takes its default from the schema here.
    """

    name: str
    task: Task
    parameters: type[parameters.Parameters]
    title: str
    summary: str
    description: str
    inputs: tuple[str, ...]
    schema: Mapping[str, Any]


MODELS: Mapping[str, Model] = {
    model.name: model
    for model in (
        Model(
            name=IMAGE_TO_VIDEO,
            task="image-to-video",
            parameters=parameters.VideoParameters,
            title="WAN 2.6 - Image to Video",
            summary="A picture becomes a video",
            description="Animates one picture by a prompt, with the sound that is given. Answered "
            "by this server's own engine, not by the hosted model.",
            inputs=("text", "image", "audio"),
            schema={
                "type": "object",
                "required": ["prompt", "input_image"],
                "basic": ["prompt", "input_image"],
                "properties": {
                    "prompt": {
                        "type": "string",
                        "title": "Prompt",
                        "description": "Text description of what you want to generate, or the "
                        "instruction on how to edit the given image.",
                        "default": "Zoom into the ox, while it is walking forward on the road, in "
                        "cinematic fashion",
                        "x-order": 0,
                    },
                    "input_image": {
                        "type": "string",
                        "format": "uri",
                        "renderType": "image-url",
                        "title": "Input Image",
                        "description": "Image to use as reference. Must be jpeg, png, gif, or "
                        "webp.",
                        "default": "https://hub.oxen.ai/api/repos/ox/Oxen-AI-Assets/file/main/"
                        "images/ox_zoom_out_1926_1076.png",
                        "x-order": 1,
                    },
                    "duration": {
                        "type": "integer",
                        "title": "Duration",
                        "description": "Video duration in seconds",
                        "default": 5,
                        "enum": [5, 10, 15],
                        "x-order": 2,
                    },
                    "audio_url": {
                        "type": "string",
                        "format": "uri",
                        "title": "Audio Url",
                        "description": "URL of the audio to use as the background music. If the "
                        "audio duration exceeds the duration value, the audio is truncated to the "
                        "first N seconds, and the rest is discarded.",
                        "x-order": 3,
                    },
                },
            },
        ),
        Model(
            name=REFERENCE_TO_VIDEO,
            task="reference-to-video",
            parameters=parameters.ReferenceParameters,
            title="WAN 2.6 - Video to Video",
            summary="Reference video with character consistency",
            description="Puts the subjects of up to three videos into a video by a prompt; makes "
            "one from the prompt alone without any. Answered by this server's own engine, not by "
            "the hosted model.",
            inputs=("text", "video"),
            schema={
                "type": "object",
                "required": ["prompt"],
                "basic": ["prompt", "input_videos"],
                "properties": {
                    "prompt": {
                        "type": "string",
                        "title": "Prompt",
                        "description": "Text description of what you want to generate, or the "
                        "instruction on how to edit the given image.",
                        "default": "An ox slowly walking down the road. Cinematic.",
                        "x-order": 0,
                    },
                    "input_videos": {
                        "type": "array",
                        "items": {"type": "string", "format": "uri"},
                        "title": "Input Videos",
                        "description": "Videos to use as reference.",
                        "default": [
                            "https://hub.oxen.ai/api/repos/ox/Oxen-AI-Assets/file/main/images/"
                            "winter_summer_ox.mp4"
                        ],
                        "x-order": 1,
                    },
                },
            },
        ),
    )
}


def described(model: Model, prices: Mapping[str, Decimal]) -> dict[str, Any]:
    """Return the model object. `prices` are in USD per second of video, by size."""
    small, large = float(prices["1280*720"]), float(prices["1920*1080"])
    return {
        "id": model.name,
        "object": "model",
        "created": _CREATED,
        "owned_by": "oxen",
        "display_name": model.title,
        "description": model.description,
        "summary": model.summary,
        "model_type": "base",
        "endpoint": "/videos/generate",
        "capabilities": {"input": list(model.inputs), "output": ["video"]},
        "pricing": {
            "method": "per_video_output_second",
            "input_cost_per_token": None,
            "output_cost_per_token": None,
            "cost_per_second": small,
            "cost_per_image": None,
            "cost_per_second_high_res": large,
            "cost_per_second_with_audio": None,
            "cost_per_second_by_resolution": {"720p": small, "1080p": large},
        },
        "fine_tuning": None,
        "deployments": [],
        "developer": {"name": _DEVELOPER, "logo": None},
        "source_model": None,
        "image_url": None,
        "released_at": None,
        "showcase": [],
        "request_schema": model.schema,
        "json_request_schema": model.schema,
    }


def found(search: str, developer: str = "", provider: str = "", action: str = "") -> list[Model]:
    """Find models by a part of their name or title, by developer, by provider, and by action. An
    empty string matches everything."""
    if developer.lower() not in ("", _DEVELOPER.lower()) or provider.lower() not in ("", _PROVIDER):
        return []
    wanted, action = search.strip().lower(), action.strip().lower().replace("_", "-")
    return [
        model
        for model in MODELS.values()
        if (wanted in model.name.lower() or wanted in model.title.lower())
        and action in ("", "video", "videos", model.task)
    ]
