"""Tells what a job was made from, so that a browser that has not sent it can show it and send it
again: the prompt and the options as its request has them, and of each file whether it is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wan_engine.gateway.excerpt import is_cut

_TEXTS = ("prompt", "negative_prompt", "size", "aspect_ratio", "shot_type")
_NUMBERS = ("duration", "seed")
_SWITCHES = (
    "keep_first_clip",
    "enable_prompt_expansion",
    "enable_safety_checker",
    "generate_audio",
)
_MEDIA = ("image", "last_image", "first_clip", "audio")
REFERENCES = "references"
FIELDS = (*_MEDIA, REFERENCES)
"""The fields of a request that have files or their addresses."""

_LORA_KEYS = ("name", "scale", "expert")


def made_from(request: Mapping[str, Any], all_kept: bool) -> dict[str, Any]:
    """The `options` and `media` of a request, whose long texts may be cut. `all_kept`: the uncut
    texts are kept elsewhere. What the form of the page does not have is left out.

    A medium is its `url`, or the `type` of its file and whether it is `kept`.
    """
    options = {name: request[name] for name in _TEXTS if isinstance(request.get(name), str)}
    options |= {name: request[name] for name in _NUMBERS if _is_number(request.get(name))}
    options |= {name: request[name] for name in _SWITCHES if isinstance(request.get(name), bool)}
    if loras := _loras(request.get("loras")):
        options["loras"] = loras
    given = {name: request[name] for name in _MEDIA if _is_text(request.get(name))}
    media: dict[str, Any] = {name: _medium(value, all_kept) for name, value in given.items()}
    references = request.get(REFERENCES)
    if isinstance(references, list):
        media[REFERENCES] = [_medium(one, all_kept) for one in references if _is_text(one)]
    return {"options": {"prompt": "", **options}, "media": media}


def file_of(request: Mapping[str, Any], field: str, at: int) -> str | None:
    """The data URI of a file of a request; `at` is its place in `references`. None if there is
    none, or only its beginning."""
    found = request.get(field)
    if field == REFERENCES and isinstance(found, list):
        texts = [one for one in found if _is_text(one)]
        found = texts[at] if at < len(texts) else None
    if not isinstance(found, str) or not _is_file(found) or is_cut(found):
        return None
    return found


def _medium(value: str, all_kept: bool) -> dict[str, Any]:
    if not _is_file(value):
        return {"url": value}
    kind = value[5:].partition(";")[0].partition(",")[0].lower()
    return {"type": kind, "kept": all_kept or not is_cut(value)}


def _loras(value: object) -> list[dict[str, Any]]:
    """The entries that are right, each as an object."""
    entries = value if isinstance(value, list) else []
    objects = [{"name": one} if isinstance(one, str) else one for one in entries]
    return [
        {key: one[key] for key in _LORA_KEYS if one.get(key) is not None}
        for one in objects
        if isinstance(one, Mapping) and _is_text(one.get("name"))
    ]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_file(value: str) -> bool:
    return value[:5].lower() == "data:"
