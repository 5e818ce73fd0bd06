"""Applies the settings of the operator to a row of the catalogue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wan_engine.catalog import ModelSpec
from wan_engine.errors import ConfigurationError
from wan_engine.settings import Settings

_FULL_AREA = 1920 * 1088  # 1080p with sides that are multiples of 16


def with_settings(spec: ModelSpec, settings: Settings) -> ModelSpec:
    """`spec` with these settings applied. All of them except the area apply to the model of
    WAN_MODEL only. Raises `ConfigurationError` for settings that contradict each other."""
    area = settings.render_area or (_FULL_AREA if settings.upscale == "native" else None)
    if spec.task != "image-to-video":
        return replace(spec, max_area=area or spec.max_area)
    overrides = {
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "guidance_scale_2": settings.guidance_scale_2,
        "flow_shift": settings.flow_shift,
        "max_area": area,
    }
    given: dict[str, Any] = {name: value for name, value in overrides.items() if value is not None}
    if settings.flow_shift is not None:
        given["flow_shift_480p"] = None
    spec = _with_continuation(replace(spec, **given), settings)
    # The first scale alone decides whether the pipeline runs a second forward pass.
    if spec.guidance_scale <= 1 < (spec.guidance_scale_2 or 1):
        raise ConfigurationError(
            "WAN_GUIDANCE_SCALE is 1, which switches CFG off for both experts, but "
            f"WAN_GUIDANCE_SCALE_2 is {spec.guidance_scale_2:g}. Set both to 1, or the first "
            "above 1."
        )
    return spec


def negative_prompt(given: str | None, spec: ModelSpec, settings: Settings) -> str:
    """The negative prompt: the caller's, the model's own, or both."""
    if given is None:
        return spec.negative_prompt
    if settings.negative_prompt == "replace":
        return given
    # The caller's words come first, because the text encoder cuts the end of a long text.
    return f"{given}, {spec.negative_prompt}"


def _with_continuation(spec: ModelSpec, settings: Settings) -> ModelSpec:
    wanted, overlap = settings.continuation, spec.overlap_frames
    if wanted == "auto":
        return spec
    if wanted == "last_frame":
        wanted, overlap = "last_frames", 1
    if wanted not in spec.continuations:
        raise ConfigurationError(
            f"WAN_CONTINUATION is {settings.continuation}, which {spec.name} cannot do: it takes "
            f"{' or '.join(('auto', *spec.continuations))}."
        )
    pair = {lora.expert for lora in settings.lora}
    if wanted == "svi" and spec.continuation != "svi" and not pair >= {"high", "low"}:
        raise ConfigurationError(
            "WAN_CONTINUATION is svi, which needs the Stable Video Infinity 2.0 Pro LoRA pair: set "
            "WAN_MODEL=wan2.2-i2v-a14b-4step-svi, or name the pair in WAN_LORA, one file for the "
            "expert `high` and one for `low`."
        )
    takes = spec.takes
    if wanted == "svi":  # the pair was trained without a last picture
        takes = tuple(one for one in takes if one != "last_picture")
    return replace(spec, continuation=wanted, overlap_frames=overlap, takes=takes)
