"""Defines the requests that callers send, one class per hosted page, with its fields and sentences.

All of them become an `Order`. A new page is a new class here, and its name in `parse_request`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from wan_engine.errors import InvalidRequest
from wan_engine.schema import fields
from wan_engine.schema.fields import AspectRatio, Duration, ShotType, Size, TextSize
from wan_engine.schema.lora import Lora, loras
from wan_engine.schema.order import Order

log = logging.getLogger(__name__)

# Forms send empty values.
_EMPTY_IS_ABSENT = ("audio", "negative_prompt", "last_image", "first_clip", "loras")

Prompt = Annotated[str, BeforeValidator(fields.prompt)]
NegativePrompt = Annotated[str | None, BeforeValidator(fields.negative_prompt)]
Seconds = Annotated[
    Duration,
    BeforeValidator(fields.duration),
    Field(description="Video duration in seconds."),
]
Shots = Annotated[
    ShotType,
    fields.one_of("shot_type", ShotType),
    Field(
        description="Shot composition mode. `multi` acts only with `enable_prompt_expansion`.",
    ),
]
Seed = Annotated[
    int,
    BeforeValidator(fields.seed),
    WithJsonSchema({"type": "integer", "minimum": -1, "maximum": fields.SEED_MAX}),
    Field(description="Seed for reproducible results. Set to -1 for random."),
]
Expansion = Annotated[
    bool,
    fields.boolean("enable_prompt_expansion"),
    Field(description="Automatically expand and enhance the prompt."),
]
SafetyCheck = Annotated[
    bool,
    fields.boolean("enable_safety_checker"),
    Field(description="Enable content safety checking."),
]

# Not documented on the hosted pages, so not in the schemas, but accepted.
GenerateAudio = SkipJsonSchema[Annotated[bool, fields.boolean("generate_audio")] | None]
"""Whether a clip without `audio` gets sound. If false, it has no track."""
FirstFrame = SkipJsonSchema[Annotated[bool, fields.boolean("first_frame")]]
"""Whether the first frame of an animated image is used, including GIF, instead of refusing it."""
LastImage = SkipJsonSchema[Annotated[str, fields.source("last_image")] | None]
"""The picture that the clip ends with."""
Loras = SkipJsonSchema[Annotated[tuple[Lora, ...], BeforeValidator(loras)]]
"""The LoRA files of the operator's folder to make the clip with."""
WholeSeconds = SkipJsonSchema[Annotated[int, BeforeValidator(fields.seconds)] | None]
"""Any length that a clip can have, for APIs that allow more than three. It overrides `duration`."""


class ClipRequest(BaseModel):
    """The fields that all pages share.

    Use `parse` for values from a caller: it raises `InvalidRequest` with one sentence. The
    constructor takes the same values and raises pydantic's `ValidationError`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    _cuts: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="wrap")
    @classmethod
    def _remember_cuts(cls, payload: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        request = build(payload)
        if isinstance(payload, Mapping):
            request._cuts = tuple(fields.cuts(payload))
        return request

    @classmethod
    def parse(cls, payload: object) -> Self:
        """Parse the request in `payload`, a JSON object. Raises `InvalidRequest` with one sentence
        about the first wrong field.

        `null` means absent, and so do an empty `audio` and `negative_prompt`, because forms send
        them. Unknown keys are ignored.
        """
        if payload is None:
            raise InvalidRequest('field "input" is required')
        if not isinstance(payload, Mapping):
            raise InvalidRequest(
                f'field "input" must be an object, got {fields.described(payload)}'
            )
        names = (json.dumps(str(key)[:40])[1:-1] for key in payload if key not in cls.model_fields)
        unknown = sorted(names)
        if unknown:
            log.info("ignored unknown input fields: %s", ", ".join(unknown[:20]))
        known = {
            key: value
            for key, value in payload.items()
            if key in cls.model_fields and value is not None
        }
        for key in _EMPTY_IS_ABSENT:
            if known.get(key) == "":
                del known[key]
        try:
            return cls.model_validate(known)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            if first["type"] == "missing":
                raise InvalidRequest(f'field "{first["loc"][0]}" is required') from None
            raise InvalidRequest(first["msg"]) from None

    def order(self) -> Order:
        """The same clip in the engine's own terms."""
        names = {
            "generate_audio": "sound",
            "enable_prompt_expansion": "expand_prompt",
            "enable_safety_checker": "check_content",
            "first_frame": "any_frames",
        }
        said = {names.get(name, name): getattr(self, name) for name in type(self).model_fields}
        if (seconds := said.pop("seconds")) is not None:
            said["duration"] = seconds
        return Order(**said, cuts=self._cuts)


class VideoRequest(ClipRequest):
    """One clip from a picture, as the hosted `wan-2-6-i2v` endpoint documents its `input`. The
    fields have the order of the page."""

    model_config = ConfigDict(
        title="wan-2-6-i2v input",
        json_schema_extra={"description": "One clip of image-to-video generation."},
    )

    prompt: Prompt = Field(
        description="Text description of the desired video motion and content. "
        f"Longer than {fields.PROMPT_MAX_CHARACTERS} characters is cut."
    )
    image: Annotated[str, fields.source("image")] = Field(
        description="URL of the source image to animate. http, https or a data URI; JPEG, PNG, "
        "BMP or WEBP."
    )
    audio: Annotated[str, fields.source("audio")] | None = Field(
        default=None,
        description="URL of an audio file to include in the video. http, https or a data URI; WAV "
        "or MP3. Cut to the duration if longer, silence after it if shorter.",
    )
    negative_prompt: NegativePrompt = Field(
        default=None,
        description="Elements to exclude from the generated video. "
        f"Longer than {fields.NEGATIVE_PROMPT_MAX_CHARACTERS} characters is cut.",
    )
    size: Annotated[Size, BeforeValidator(fields.size)] = Field(
        default="1280*720",
        description="Video resolution. It is a pixel budget: the picture keeps the shape of the "
        "image. `720p` and `1080p` are names of the two.",
    )
    duration: Seconds = 5
    shot_type: Shots = "single"
    seed: Seed = -1
    enable_prompt_expansion: Expansion = False
    enable_safety_checker: SafetyCheck = True
    first_frame: FirstFrame = False
    last_image: LastImage = None
    loras: Loras = ()
    seconds: WholeSeconds = None
    generate_audio: GenerateAudio = None


class ReferenceRequest(ClipRequest):
    """One clip from references, in the style of the hosted `wan-2-6-i2v` page. No hosted Runpod
    page has it. The inputs are those of DashScope's `wan2.6-r2v`."""

    model_config = ConfigDict(
        title="wan-2-6-r2v input",
        json_schema_extra={
            "description": "One clip of reference-to-video generation; of text-to-video where "
            "`references` is empty."
        },
    )

    prompt: Prompt = Field(
        description="Text description of the desired video. "
        f"Longer than {fields.PROMPT_MAX_CHARACTERS} characters is cut."
    )
    references: Annotated[tuple[str, ...], BeforeValidator(fields.references)] = Field(
        description=f"At most {fields.REFERENCES_MAX} URLs (http, https) or data URIs, one subject "
        "each: the first is `character1`."
    )
    audio: Annotated[str, fields.source("audio")] | None = Field(
        default=None, description="URL (http, https) or data URI of a sound: WAV or MP3."
    )
    negative_prompt: NegativePrompt = Field(
        default=None, description="Elements to exclude from the generated video."
    )
    size: Annotated[TextSize, BeforeValidator(fields.text_size)] = Field(
        default="1280*720",
        description="Video resolution as a pixel budget; the two portrait ones mean "
        "`aspect_ratio` 9:16 as well.",
    )
    aspect_ratio: Annotated[AspectRatio, fields.one_of("aspect_ratio", AspectRatio)] = Field(
        default="16:9", description="Shape of the video."
    )
    duration: Seconds = 5
    shot_type: Shots = "single"
    seed: Seed = -1
    enable_prompt_expansion: Expansion = False
    enable_safety_checker: SafetyCheck = True
    last_image: LastImage = None
    loras: Loras = ()
    seconds: WholeSeconds = None
    generate_audio: GenerateAudio = None

    @model_validator(mode="after")
    def _have_one_shape(self) -> Self:
        given = self.aspect_ratio if "aspect_ratio" in self.model_fields_set else "9:16"
        if self.size in fields.PORTRAITS and given != "9:16":
            raise fields.refusal(
                f'field "aspect_ratio" must be "9:16" where "size" is "{self.size}", got "{given}"'
            )
        return self

    def order(self) -> Order:
        """The same clip in the engine's own terms."""
        order = super().order()
        budget = fields.PORTRAITS.get(self.size)
        return replace(order, size=budget, aspect_ratio="9:16") if budget else order


class ContinuationRequest(ClipRequest):
    """One clip that continues another clip, in the style of the hosted `wan-2-6-i2v` page. No
    hosted Runpod page has it. The inputs are those of DashScope's `wan2.7-i2v` with a
    `first_clip`."""

    model_config = ConfigDict(
        title="wan-2-6-i2v input with a first clip",
        json_schema_extra={"description": "One clip that goes on from the end of another one."},
    )

    prompt: Prompt = Field(
        description="Text description of what happens next. "
        f"Longer than {fields.PROMPT_MAX_CHARACTERS} characters is cut."
    )
    first_clip: Annotated[str, fields.source("first_clip")] = Field(
        description="URL (http, https) or data URI of the clip to continue: MP4 or MOV, 2 to 10 "
        "seconds."
    )
    keep_first_clip: Annotated[bool, fields.boolean("keep_first_clip")] = Field(
        default=True,
        description="Whether the output begins with the first clip. Then `duration` is the length "
        "of both; otherwise it is the length of the new part, which is the output.",
    )
    last_image: Annotated[str, fields.source("last_image")] | None = Field(
        default=None, description="URL or data URI of the picture that the clip ends with."
    )
    audio: Annotated[str, fields.source("audio")] | None = Field(
        default=None, description="URL (http, https) or data URI of a sound: WAV or MP3."
    )
    negative_prompt: NegativePrompt = Field(
        default=None, description="Elements to exclude from the generated video."
    )
    size: Annotated[Size, BeforeValidator(fields.size)] = Field(
        default="1280*720", description="Video resolution as a pixel budget."
    )
    duration: Seconds = 5
    shot_type: Shots = "single"
    seed: Seed = -1
    enable_prompt_expansion: Expansion = False
    enable_safety_checker: SafetyCheck = True
    first_frame: FirstFrame = False
    loras: Loras = ()
    seconds: WholeSeconds = None
    generate_audio: GenerateAudio = None

    def order(self) -> Order:
        """The same clip in the engine's own terms. It has one shot."""
        order = super().order()
        if order.shot_type == "single":
            return order
        cuts = (*order.cuts, "A clip that continues another one has one shot")
        return replace(order, shot_type="single", cuts=cuts)


Request = VideoRequest | ReferenceRequest | ContinuationRequest


def parse_request(payload: object) -> Request:
    """Parse the request in `payload` as the page whose fields it has. With `references` it is
    reference-to-video. A null `references` without an `image` is an error of that page. With
    `first_clip` it continues a clip. Raises `InvalidRequest`."""
    if isinstance(payload, Mapping) and payload.get("first_clip") not in (None, ""):
        for other in ("image", "references"):
            if payload.get(other) not in (None, ""):
                raise InvalidRequest(f'field "first_clip" cannot be given with field "{other}"')
        return ContinuationRequest.parse(payload)
    if not isinstance(payload, Mapping) or "references" not in payload:
        return VideoRequest.parse(payload)
    if payload.get("image") is None:
        return ReferenceRequest.parse(payload)
    if payload["references"] is not None:
        raise InvalidRequest('field "references" cannot be given with field "image"')
    return VideoRequest.parse(payload)
