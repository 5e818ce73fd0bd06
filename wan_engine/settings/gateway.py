"""Backend, keys, database and limits of the gateway."""

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
    """Settings that only `serve` reads."""

    backend: Literal["auto", "local", "runpod"] = Field(
        default="auto",
        description="What renders for the gateway. `local`: this machine. `runpod`: the "
        "endpoint WAN_RUNPOD_ENDPOINT. `auto`: that endpoint if it is set, otherwise this "
        "machine",
    )
    runpod_endpoint: Key | None = Field(
        default=None, description="Id of the Runpod endpoint that renders for the gateway"
    )
    runpod_key: SecretKey | None = Field(
        default=None, description="Runpod API key for that endpoint"
    )
    runpod_url: BaseUrl = Field(
        default="https://api.runpod.ai/v2",
        description="Base URL of Runpod's API",
    )
    api_keys: HashedKeys = Field(
        default={},
        description="API keys of the gateway, as `name:hash,name:hash`. `python -m wan_engine "
        "key NAME` makes one. `:weight=2` after a hash gives that key two turns for each turn "
        "of the others; `:max=50` lets at most 50 of its jobs wait. Without keys, the gateway "
        "listens on this machine only",
        repr=False,
    )
    endpoints: Words = Field(
        default=("wan-2-6-i2v", "wan-2-6-r2v", "wan-2-6-t2v"),
        description="Endpoint ids that the gateway serves in the Runpod API, separated by "
        "commas. `wan-2-6-r2v` and `wan-2-6-t2v` need WAN_REFERENCE_MODEL",
    )
    database_url: SecretStr | None = Field(
        default=None,
        description="Database of the gateway's jobs: `sqlite:///path` or "
        "`postgresql://user:password@host/name`. If not set, the file `gateway.db` in "
        "WAN_OUTPUT_DIR",
    )
    queue_max: int = Field(
        default=1000,
        ge=1,
        description="Number of jobs that may wait. Above it, callers get 429. Half of the "
        "places are shared out among the keys by weight; the other half goes to whoever comes "
        "first",
    )
    job_starts: int = Field(
        default=3, ge=1, description="A job fails after it has crashed this many workers"
    )
    keep_jobs_days: float = Field(
        default=7, gt=0, description="How long the gateway keeps a job after its end, in days"
    )
    media_max_bytes: int = Field(
        default=4096 * MIB,
        ge=MIB,
        description="Bytes of media and other long text that the gateway keeps in requests of "
        "one key. Above it, the gateway drops those of failed jobs; if that is not enough, "
        "callers get 429",
    )
    media_days: float = Field(
        default=1,
        gt=0,
        description="How long the gateway keeps the media of a failed job, so that you can "
        "retry it, in days",
    )
    request_max_bytes: int = Field(
        default=20 * MIB, ge=1024, description="Largest allowed body of a request, in bytes"
    )
    rate_limit: float = Field(
        default=200,
        ge=0,
        description="Requests per second that one key may send, with bursts of ten times as "
        "many. Above it, callers get 429. 0: no limit",
    )
    in_flight_max_bytes: int = Field(
        default=256 * MIB,
        ge=1024,
        description="Bytes of all requests that the gateway is receiving or storing. Above it, "
        "callers get 503. One key may use a quarter of it; above that, it gets 429",
    )
    connections_per_address: int = Field(
        default=64,
        ge=1,
        description="Open connections per address, or per /64 network of IPv6. Above it, "
        "callers get 429. WAN_TRUSTED_PROXIES are exempt",
    )
    public_url: BaseUrl | None = Field(
        default=None,
        description="URL at which callers reach the gateway, such as "
        "`https://video.example.com`. Links in answers begin with it. If not set, they begin "
        "with the URL that the request was sent to",
    )
    trusted_proxies: Networks = Field(
        default=(),
        description="Addresses or networks of reverse proxies, separated by commas. The gateway "
        "trusts their `X-Forwarded-For` and `X-Forwarded-Proto`",
    )
    cors_origins: Origins = Field(
        default=(),
        description="Origins of web pages that may call the gateway, separated by commas. `*` "
        "allows all",
    )
    shutdown_seconds: float = Field(
        default=30,
        ge=0,
        description="How long a gateway that is stopped waits for its running job, in seconds. "
        "After it, the job goes back to the queue",
    )
