"""Where clips are stored. The variables of the bucket have the names that Runpod uses."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, Field

from wan_engine.settings.values import BaseUrl, Key, SecretKey, Url


class StorageSettings(BaseModel):
    """A bucket or a folder, and the spool in front of the bucket."""

    storage: Literal["auto", "s3", "local"] = Field(
        default="auto",
        description="Where clips are stored. `auto`: in the bucket if it is set, otherwise in "
        "WAN_OUTPUT_DIR. `s3`: in the bucket. `local`: in WAN_OUTPUT_DIR. A Runpod worker "
        "without a bucket starts only with `local`",
    )
    output_dir: Path = Field(
        default=Path("outputs"), description="Folder for clips if no bucket is set"
    )
    bucket_endpoint_url: Url | None = Field(
        default=None,
        validation_alias=AliasChoices("BUCKET_ENDPOINT_URL"),
        description="Endpoint URL of the object storage. It may contain the bucket",
        repr=False,  # some people put keys into the URL
    )
    bucket_access_key_id: SecretKey | None = Field(
        default=None,
        validation_alias=AliasChoices("BUCKET_ACCESS_KEY_ID"),
        description="Access key of the object storage",
    )
    bucket_secret_access_key: SecretKey | None = Field(
        default=None,
        validation_alias=AliasChoices("BUCKET_SECRET_ACCESS_KEY"),
        description="Secret key of the object storage",
    )
    bucket_name: Key | None = Field(
        default=None,
        validation_alias=AliasChoices("BUCKET_NAME"),
        description="Name of the bucket, if the endpoint URL does not contain it",
    )
    s3_region: Key | None = Field(
        default=None, description="Region of the bucket, if the endpoint URL does not contain it"
    )
    s3_addressing: Literal["auto", "path", "virtual"] = Field(
        default="auto",
        description="How requests name the bucket: `path` in the path, `virtual` in the host "
        "name. `auto` chooses by the endpoint",
    )
    s3_prefix: str = Field(default="", description="Prefix of every key in the bucket")
    public_base_url: BaseUrl | None = Field(
        default=None,
        description="Base URL of a public bucket. Results then have `<this>/<key>` as the URL "
        "instead of a signed one",
    )
    spool_dir: Path | None = Field(
        default=None,
        description="Folder that outlives the worker, such as a network volume. Finished clips "
        "wait there while the bucket cannot be reached",
    )
    keep_days: float = Field(
        default=7, gt=0, description="How long a clip stays in WAN_SPOOL_DIR, in days"
    )

    @property
    def has_bucket(self) -> bool:
        """Whether the three variables that S3 needs are set."""
        keys = (self.bucket_endpoint_url, self.bucket_access_key_id, self.bucket_secret_access_key)
        return all(keys)
