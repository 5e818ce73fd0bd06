"""The gateway: who renders for it, who may call it, and how much."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, SecretStr

from wan_engine.settings.values import (
    MIB,
    BaseUrl,
    HashedKeys,
    Key,
    Networks,
    Origins,
    SecretKey,
    Words,
)


class GatewaySettings(BaseModel):
    """Only `serve` reads them."""

    backend: Literal["auto", "local", "runpod"] = Field(
        default="auto",
        description="Who renders for the gateway: `local`, this machine's engine; `runpod`, the "
        "endpoint WAN_RUNPOD_ENDPOINT; `auto`: that endpoint when it is set",
    )
    runpod_endpoint: Key | None = Field(
        default=None, description="Id of the Runpod endpoint that renders for the gateway"
    )
    runpod_key: SecretKey | None = Field(default=None, description="Its API key")
    runpod_url: BaseUrl = Field(
        default="https://api.runpod.ai/v2",
        description="Where that endpoint's API is",
    )
    runpod_claims: bool = Field(
        default=True,
        description="Whether that endpoint is told the name of each render, as `wan_claim` in "
        "the input: its workers render once what was handed over twice. For another's worker that "
        "refuses unknown fields: `0`",
    )
    api_keys: HashedKeys = Field(
        default={},
        description="Who may call the gateway: `name:hash,name:hash`, as `python -m wan_engine "
        "key NAME` prints them. `:weight=2` behind one gives it two turns for one of another's, "
        "`:max=50` lets 50 of its jobs wait at most. Without, it listens on this machine only",
        repr=False,
    )
    endpoints: Words = Field(
        default=("wan-2-6-i2v", "wan-2-6-r2v", "wan-2-6-t2v"),
        description="Endpoint ids of the Runpod API that the gateway answers to, with commas "
        "between. `wan-2-6-r2v` and `wan-2-6-t2v` are there only with a WAN_REFERENCE_MODEL",
    )
    database_url: SecretStr | None = Field(
        default=None,
        description="Where the gateway keeps its jobs: `sqlite:///path` or "
        "`postgresql://user:password@host/name`; not set, the file `gateway.db` in WAN_OUTPUT_DIR",
    )
    queue_max: int = Field(
        default=1000,
        ge=1,
        description="Jobs that may wait; beyond it, callers get 429. Half of the places are kept "
        "for the keys, by weight; the other half is for whoever comes first",
    )
    job_starts: int = Field(
        default=3, ge=1, description="How often a job may end its worker, until it fails"
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
    in_flight_max_bytes: int = Field(
        default=256 * MIB,
        ge=1024,
        description="Bytes of all requests that are being received or stored; beyond it, callers "
        "get 503. One key may have a quarter of it; beyond that, it gets 429",
    )
    head_seconds: float = Field(
        default=10,
        gt=0,
        description="How long the head of a request may take, and how long a body may be slower "
        "than WAN_BODY_RATE, in seconds; then callers get 408",
    )
    body_rate: float = Field(
        default=16 * 1024, gt=0, description="Slowest body of a request, in bytes a second"
    )
    connections_per_address: int = Field(
        default=64,
        ge=1,
        description="Open connections of one address, or of one IPv6 network of 64 bits; beyond "
        "it, callers get 429. WAN_TRUSTED_PROXIES may have more",
    )
    public_url: BaseUrl | None = Field(
        default=None,
        description="Where callers reach the gateway, such as `https://video.example.com`; for "
        "the links in answers. Not set, as each request names it",
    )
    trusted_proxies: Networks = Field(
        default=(),
        description="Addresses or networks of reverse proxies whose `X-Forwarded-For` and "
        "`X-Forwarded-Proto` are believed, with commas between",
    )
    cors_origins: Origins = Field(
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
