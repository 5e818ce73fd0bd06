"""Who expands prompts, and who checks what they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from wan_engine.settings.values import SecretKey, SecretUrl


class PromptSettings(BaseModel):
    """The prompt writer."""

    prompt_backend: Literal["auto", "openai", "transformers", "template"] = Field(
        default="auto",
        description="What expands prompts: `openai` asks the server at WAN_PROMPT_URL, "
        "`transformers` runs WAN_PROMPT_MODEL here, `template` adds fixed phrases; `auto`: the "
        "first of them that this machine has",
    )
    prompt_url: SecretUrl | None = Field(
        default=None,
        description="Base URL of an OpenAI-compatible server, such as `http://127.0.0.1:8000/v1`",
    )
    prompt_api_key: SecretKey | None = Field(default=None, description="Its key")
    prompt_model: str = Field(
        default="qwen3-vl-4b",
        description="The model that expands prompts: `qwen3-vl-4b`, a folder or Hub id of the "
        "Qwen-VL kind, or the server's name for it",
    )
    prompt_seconds: float = Field(
        default=30, gt=0, le=600, description="Time limit of an answer, in seconds"
    )


class SafetySettings(BaseModel):
    """The classifiers of prompts, pictures and frames."""

    safety: Literal["auto", "required", "off"] | None = Field(
        default=None,
        description="`auto`: use the safety classifiers that are present and say so in the result "
        "when one is missing; `required`: refuse to start without them; `off`: never check. Not "
        "set, it is `auto`, and `required` in the Runpod loop",
    )
    safety_prompt_model: str = Field(
        default="qwen3guard-gen-0.6b",
        description="The prompt guard: a catalogue name, a folder or a Hub id of the "
        "Qwen3Guard-Gen kind",
    )
    safety_image_model: str = Field(
        default="nsfw-image-detection",
        description="The classifier of images and frames: a catalogue name, or a folder or Hub id "
        "of any transformers image classifier",
    )
    safety_image_labels: Mapping[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        default={},
        description="Labels of that classifier that are flagged, each from which probability on, "
        'as JSON: `{"nsfw": 0.6}`; instead of those in the catalogue',
    )
