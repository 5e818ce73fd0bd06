"""The gateway's part of `settings.Settings`, which alone reads the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode

MIB = 1024 * 1024


HASHED_KEY = re.compile(
    r"(?!.*:weight=.*:weight=)(?!.*:max=.*:max=)[A-Za-z0-9_.-]{1,64}:[0-9a-f]{64}"
    r"(?::weight=(?!0+(?:\.0+)?(?::|$))[0-9]{1,3}(?:\.[0-9]{1,2})?|:max=[1-9][0-9]{0,5})*"
)
"""An entry of `api_keys`: a name, the SHA-256 of a key, and what makes its share another."""


def _words(value: object) -> object:
    """What stands between commas in a variable."""
    if not isinstance(value, str):
        return value
    return tuple(word for part in value.split(",") if (word := part.strip()))


def _api_keys(value: object) -> object:
    if not isinstance(value, str):
        return value
    entries = _words(value)
    assert isinstance(entries, tuple)
    if not all(HASHED_KEY.fullmatch(entry) for entry in entries):
        raise ValueError(
            "it must be name:hash, the hash 64 hexadecimal digits, with commas between; after the "
            "hash may be :weight= and a number up to 999.99, and :max= and an integer up to 999999"
        )
    keys = dict(entry.split(":", 1) for entry in entries)
    if len(keys) != len(entries):
        raise ValueError("each name may be there once")
    return keys


class GatewaySettings(BaseSettings):
    """The fields alone."""

    backend: Literal["auto", "local", "runpod"] = Field(
        default="auto",
        description="Who renders for the gateway: `local`, this machine's engine; `runpod`, the "
        "endpoint WAN_RUNPOD_ENDPOINT; `auto`: that endpoint when it is set",
    )
    runpod_endpoint: str | None = Field(
        default=None, description="Id of the Runpod endpoint that renders for the gateway"
    )
    runpod_key: str | None = Field(default=None, description="Its API key", repr=False)
    runpod_url: str = Field(
        default="https://api.runpod.ai/v2",
        pattern="^https?://[^/]",
        description="Where that endpoint's API is",
    )
    api_keys: Annotated[Mapping[str, str], NoDecode, BeforeValidator(_api_keys)] = Field(
        default={},
        description="Who may call the gateway: `name:hash,name:hash`, as `python -m wan_engine "
        "key NAME` prints them. `:weight=2` behind one gives it two turns for one of another's, "
        "`:max=50` lets 50 of its jobs wait at most. Without, it listens on this machine only",
        repr=False,
    )
    endpoints: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = Field(
        default=("wan-2-6-i2v",),
        description="Endpoint ids of the Runpod API that the gateway answers to, with commas "
        "between",
    )
    database_url: str | None = Field(
        default=None,
        description="Where the gateway keeps its jobs: `sqlite:///path` or "
        "`postgresql://user:password@host/name`; not set, the file `gateway.db` in WAN_OUTPUT_DIR",
        repr=False,
    )
    queue_max: int = Field(
        default=1000,
        ge=1,
        description="Jobs that may wait; beyond it, callers get 429. Half of the places are kept "
        "for the keys, by weight; the other half is for whoever comes first",
    )
    job_starts: int = Field(
        default=3, ge=1, description="How often a job is begun whose worker dies, until it fails"
    )
    keep_jobs_days: float = Field(
        default=7, gt=0, description="How long the gateway keeps a job that has ended, in days"
    )
    media_max_bytes: int = Field(
        default=4096 * MIB,
        ge=MIB,
        description="Pictures, sounds and other long text in requests that the gateway keeps for "
        "one key, in bytes: beyond it those of failed jobs go, then callers get 429",
    )
    media_days: float = Field(
        default=1,
        gt=0,
        description="How long they are kept for a job that has failed, to be retried, in days",
    )
    request_max_bytes: int = Field(
        default=20 * MIB, ge=1024, description="Largest body of a request, in bytes"
    )
    rate_limit: float = Field(
        default=200,
        ge=0,
        description="Requests a second of one key, ten seconds' worth at once; beyond it, callers "
        "get 429; 0 is no limit",
    )
    public_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s?#]+$",
        description="Where callers reach the gateway, such as `https://video.example.com`; for "
        "the links in answers. Not set, as each request names it",
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = Field(
        default=(),
        description="Addresses or networks of reverse proxies whose `X-Forwarded-For` and "
        "`X-Forwarded-Proto` are believed, with commas between",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = Field(
        default=(),
        description="Origins of web pages that may call the gateway, with commas between; `*` is "
        "all of them",
    )
    shutdown_seconds: float = Field(
        default=30,
        ge=0,
        description="How long the gateway waits at its end for the job that is being rendered; "
        "then the job goes back into the queue",
    )
