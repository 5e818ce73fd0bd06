"""Serves the page: the files of `static/`, read once and unchanged. There is no build step.

A browser requests the page each time. The URLs of the other files contain a version, the hash of
all files, so a browser caches them for ever and never mixes two releases.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from fastapi import APIRouter, Request
from starlette.responses import Response

from wan_engine.gateway.doors.runpod.door import RUN_MAX_BYTES
from wan_engine.gateway.refusals import Refusal
from wan_engine.media import first_clips
from wan_engine.plan import NAMED_SIZES
from wan_engine.schema import (
    LORA_SCALE_MAX,
    LORAS_MAX,
    NEGATIVE_PROMPT_MAX_CHARACTERS,
    PROMPT_MAX_CHARACTERS,
    REFERENCES_MAX,
    SEED_MAX,
    Duration,
)
from wan_engine.settings import Settings

ASSETS = "/playground"
_STATIC = Path(__file__).parent / "static"
_INDEX = "index.html"
_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".mp4": "video/mp4",
}

# Clips and pictures may be in any bucket. Scripts, styles and connections are limited to this
# server.
_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self' blob: data: https: http:",
    "media-src 'self' blob: https: http:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "; ".join(_POLICY),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class _File:
    content: bytes
    kind: str

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


def router(settings: Settings) -> APIRouter:
    """The routes of the page and its files, which are not in the OpenAPI document."""
    files = {
        path.name: _File(path.read_bytes(), _TYPES[path.suffix])
        for path in sorted(_STATIC.iterdir())
        if path.suffix in _TYPES
    }
    version = _version(files)
    page = _page(files.pop(_INDEX), version, limits(settings))
    routes = APIRouter(include_in_schema=False)

    async def index(request: Request) -> Response:
        return _answer(request, page, "no-cache")

    async def asset(request: Request, given: str, name: str) -> Response:
        if given != version or name not in files:
            raise Refusal("not_found", "There is no such file")
        return _answer(request, files[name], _FOR_EVER)

    routes.add_api_route("/", index, methods=["GET", "HEAD"])
    routes.add_api_route(ASSETS + "/{given}/{name}", asset, methods=["GET", "HEAD"])
    return routes


def limits(settings: Settings) -> dict[str, Any]:
    """The limits that the page checks before it sends a request. The gateway and its engine check
    the same."""
    return {
        "endpoint": settings.endpoints[0] if settings.endpoints else "wan-2-6-i2v",
        "asksForKey": bool(settings.api_keys),
        "durations": get_args(Duration),
        "requestMaxBytes": min(RUN_MAX_BYTES, settings.request_max_bytes),
        "imageMinSide": settings.image_min_side,
        "imageMaxSide": settings.image_max_side,
        "imageMaxBytes": settings.image_max_bytes,
        "audioMaxSeconds": settings.audio_max_seconds,
        "audioMaxBytes": settings.audio_max_bytes,
        "clipMinSeconds": first_clips.LEAST_SECONDS,
        "clipMaxSeconds": first_clips.MOST_SECONDS,
        "promptMaxCharacters": PROMPT_MAX_CHARACTERS,
        "negativePromptMaxCharacters": NEGATIVE_PROMPT_MAX_CHARACTERS,
        "referencesMax": REFERENCES_MAX,
        "lorasMax": LORAS_MAX,
        "loraScaleMax": LORA_SCALE_MAX,
        "seedMax": SEED_MAX,
        "namedSizes": {
            size: {f"{wide}:{high}": pixels for (wide, high), pixels in shapes.items()}
            for size, shapes in NAMED_SIZES.items()
        },
    }


def _version(files: Mapping[str, _File]) -> str:
    whole = hashlib.sha256()
    for name, file in files.items():
        whole.update(f"{name}\n{len(file.content)}\n".encode() + file.content)
    return whole.hexdigest()[:16]


def _page(index: _File, version: str, known: Mapping[str, Any]) -> _File:
    """URLs are relative, because a proxy may serve the gateway below a path."""
    text = index.content.decode("utf-8")
    text = text.replace("{{assets}}", f"{ASSETS.lstrip('/')}/{version}")
    text = text.replace("{{limits}}", html.escape(json.dumps(known)))
    return _File(text.encode("utf-8"), index.kind)


def _answer(request: Request, file: _File, keep: str) -> Response:
    headers = {**_HEADERS, "ETag": file.etag, "Cache-Control": keep}
    known = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
    if file.etag in known or f"W/{file.etag}" in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.kind, headers=headers)
