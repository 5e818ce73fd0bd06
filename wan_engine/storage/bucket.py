"""Reads the bucket, region and addressing style from an endpoint URL, in any spelling that people
use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from wan_engine.errors import ConfigurationError


@dataclass(frozen=True)
class Bucket:
    """`endpoint` never contains the bucket; `addressing` is "path" or "virtual"."""

    endpoint: str
    name: str
    region: str
    addressing: str


# Hosts whose first label, before the matched part, is a bucket. They also contain the region.
_BUCKET_HOST = re.compile(
    r"(?:(?P<bucket>.+)\.)?(?:"
    r"s3(?:-accelerate|-fips)?(?:\.dualstack)?(?:[.-](?P<region>[a-z]{2}(?:-[a-z]+)+-\d+))?"
    r"\.(?:amazonaws\.com(?:\.cn)?|backblazeb2\.com|wasabisys\.com)"
    r"|(?P<space>[a-z]{3}\d)\.digitaloceanspaces\.com)"
)
# docs.runpod.io, storage/s3-api: the S3 API of a network volume, whose region is the data center.
_VOLUME_HOST = re.compile(r"s3api-(?P<center>[a-z]{2,3}-[a-z]{2,3}-\d+)\.runpod\.io")


def find_bucket(
    url: str, name: str | None = None, region: str | None = None, addressing: str = "auto"
) -> Bucket:
    """Read an endpoint: plain, or with the bucket as its first host label or in its path.

    Without `name`, the bucket is taken from known hosts only. With `name`, it is also recognised in
    any host of three or more labels that starts with it, unless `addressing` is "path".
    """
    base, host, path = _split_endpoint(url)
    known = _BUCKET_HOST.fullmatch(host)
    in_host = known["bucket"] if known else None
    if name and not known and re.match(rf"{re.escape(name)}\..+\.", host):
        in_host = name if addressing != "path" else None
    bucket = name or in_host or (path[0] if len(path) == 1 else None)
    if bucket is None:
        raise ConfigurationError("BUCKET_ENDPOINT_URL does not name a bucket: set BUCKET_NAME")
    path = path[:-1] if path[-1:] == [bucket] else path
    if in_host not in (None, bucket) or (path and (known or in_host)):
        raise ConfigurationError(
            "BUCKET_ENDPOINT_URL names another bucket than BUCKET_NAME, or a folder: "
            "make the two agree, and give a folder as WAN_S3_PREFIX"
        )
    if addressing == "auto":
        # A certificate for *.host does not cover a bucket with a dot in its name.
        addressing = "virtual" if (known or in_host) and "." not in bucket else "path"
    told = known["region"] or known["space"] if known else None
    if volume := _VOLUME_HOST.fullmatch(host):
        told = volume["center"].upper()
    default = "auto" if host.endswith(".cloudflarestorage.com") else "us-east-1"
    base = base.replace(f"://{in_host}.", "://", 1) if in_host else base
    return Bucket("/".join([base, *path]), bucket, region or told or default, addressing)


def serves_no_signed_links(bucket: Bucket) -> bool:
    """Whether the endpoint is a network volume of Runpod's. Runpod's page says that its S3 API does
    not support pre-signed URLs."""
    return (urlsplit(bucket.endpoint).hostname or "").endswith(".runpod.io")


def _split_endpoint(url: str) -> tuple[str, str, list[str]]:
    """Scheme with host and port, the host alone, the parts of the path."""
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if not host or parts.scheme not in ("http", "https"):
        raise ConfigurationError("BUCKET_ENDPOINT_URL must start with https:// or http://")
    base = f"{parts.scheme}://" + (f"[{host}]" if ":" in host else host)
    return base + (f":{port}" if port else ""), host, [p for p in parts.path.split("/") if p]
