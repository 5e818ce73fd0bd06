"""The models that expand prompts, and those that check prompts, pictures and frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from wan_engine.settings.values import SecretKey, SecretUrl


class PromptSettings(BaseModel):
    """The prompt writer: a server, a local model or fixed phrases."""

    prompt_backend: Literal["auto", "openai", "transformers", "template"] = Field(
        default="auto",
        description="What expands prompts. `openai`: the server at WAN_PROMPT_URL. "
        "`transformers`: WAN_PROMPT_MODEL on this machine. `template`: fixed phrases. `auto`: "
        "the first of these that this machine has",
    )
    prompt_url: SecretUrl | None = Field(
        default=None,
        description="Base URL of an OpenAI-compatible server, such as `http://127.0.0.1:8000/v1`",
    )
    prompt_api_key: SecretKey | None = Field(default=None, description="API key of that server")
    prompt_model: str = Field(
        default="qwen3-vl-4b",
        description="The model that expands prompts: `qwen3-vl-4b`, a folder or Hub id of a "
        "Qwen-VL model, or the server's name for its model",
    )
    prompt_seconds: float = Field(
        default=30, gt=0, le=600, description="Time limit for expanding one prompt, in seconds"
    )


class SafetySettings(BaseModel):
    """The classifiers of prompts, pictures and frames."""

    safety: Literal["auto", "required", "off"] | None = Field(
        default=None,
        description="`auto`: use the safety classifiers that are present; the result has a "
        "warning if one is missing. `required`: do not start if one is missing. `off`: no "
        "checks. If not set, `required` on Runpod and `auto` elsewhere",
    )
    safety_prompt_model: str = Field(
        default="qwen3guard-gen-0.6b",
        description="Classifier of prompts: a name of the catalogue, or a folder or Hub id of a "
        "Qwen3Guard-Gen model",
    )
    safety_image_model: str = Field(
        default="nsfw-image-detection",
        description="Classifier of images and frames: a name of the catalogue, or a folder or "
        "Hub id of any transformers image classifier",
    )
    safety_image_labels: Mapping[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        default={},
        description="Labels of the image classifier that count as unsafe, each with its lowest "
        'probability, as JSON: `{"nsfw": 0.6}`. If not set, those of the catalogue',
    )
