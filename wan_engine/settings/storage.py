"""Where clips go. The bucket has Runpod's own names."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, Field

from wan_engine.settings.values import BaseUrl, Key, SecretKey, Url


class StorageSettings(BaseModel):
    """A bucket or a folder, and the spool in front of the bucket."""

    storage: Literal["auto", "s3", "local"] = Field(
        default="auto",
        description="`auto`: S3 when the bucket is set, else the local folder; in the Runpod loop "
        "a missing bucket refuses to start unless this says `local`",
    )
    output_dir: Path = Field(
        default=Path("outputs"), description="Where clips go when no bucket is set"
    )
    bucket_endpoint_url: Url | None = Field(
        default=None,
        validation_alias=AliasChoices("BUCKET_ENDPOINT_URL"),
        description="Object storage endpoint, with or without the bucket in it",
        repr=False,  # people write keys into it
    )
    bucket_access_key_id: SecretKey | None = Field(
        default=None,
        validation_alias=AliasChoices("BUCKET_ACCESS_KEY_ID"),
        description="Its access key",
    )
    bucket_secret_access_key: SecretKey | None = Field(
        default=None,
        validation_alias=AliasChoices("BUCKET_SECRET_ACCESS_KEY"),
        description="Its secret key",
    )
    bucket_name: Key | None = Field(
        default=None,
        validation_alias=AliasChoices("BUCKET_NAME"),
        description="Bucket, where the endpoint does not name it",
    )
    s3_region: Key | None = Field(
        default=None, description="Region, where the endpoint does not tell it"
    )
    s3_addressing: Literal["auto", "path", "virtual"] = Field(
        default="auto", description="How the bucket is addressed: in the path, or as a virtual host"
    )
    s3_prefix: str = Field(default="", description="First part of every key in the bucket")
    public_base_url: BaseUrl | None = Field(
        default=None,
        description="Give `<this>/<key>` as the URL instead of a signed one, for a public bucket",
    )
    spool_dir: Path | None = Field(
        default=None,
        description="Folder that outlives the worker, such as a network volume: finished clips "
        "wait there while the bucket is away",
    )
    keep_days: float = Field(
        default=7, gt=0, description="How long the spool folder keeps a clip, in days"
    )

    @property
    def has_bucket(self) -> bool:
        """The three variables that decide whether S3 is used (Runpod's own names)."""
        keys = (self.bucket_endpoint_url, self.bucket_access_key_id, self.bucket_secret_access_key)
        return all(keys)
