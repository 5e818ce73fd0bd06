"""Endpoints of buckets in the forms that people write."""

from __future__ import annotations

import pytest

from tests.storage.stores import (
    settings,
)
from wan_engine.errors import ConfigurationError
from wan_engine.storage import Bucket, S3Storage, find_bucket

AWS, R2 = "s3.us-west-2.amazonaws.com", "0123456789abcdef0123456789abcdef.r2.cloudflarestorage.com"
SPACES = "nyc3.digitaloceanspaces.com"
IN_AWS, AT_AWS = (f"https://{AWS}", "us-west-2", "virtual"), f"https://bkt.{AWS}/k"
IN_SPACES, AT_SPACES = (f"https://{SPACES}", "nyc3", "virtual"), f"https://bkt.{SPACES}/k"
DOTTED, AT_DOTTED = (f"https://{AWS}", "us-west-2", "path"), f"https://{AWS}/a.bkt/k"


@pytest.mark.parametrize(
    ("url", "name", "expected", "signed"),
    [
        # plain, with BUCKET_NAME
        (f"https://{AWS}", "bkt", IN_AWS, AT_AWS),
        (f"https://{AWS}/", "bkt", IN_AWS, AT_AWS),
        (f"https://{AWS}", "s3", IN_AWS, None),
        (f"https://{AWS}", "a.bkt", DOTTED, AT_DOTTED),
        ("https://s3.amazonaws.com", "bkt",
         ("https://s3.amazonaws.com", "us-east-1", "virtual"), None),
        ("https://s3-eu-west-1.amazonaws.com", "bkt",
         ("https://s3-eu-west-1.amazonaws.com", "eu-west-1", "virtual"), None),
        ("https://s3.cn-north-1.amazonaws.com.cn", "bkt",
         ("https://s3.cn-north-1.amazonaws.com.cn", "cn-north-1", "virtual"),
         "https://bkt.s3.cn-north-1.amazonaws.com.cn/k"),
        (f"https://{SPACES}", "bkt", IN_SPACES, AT_SPACES),
        (f"https://{SPACES}", "nyc3", IN_SPACES, None),
        (f"https://{R2}", "bkt", (f"https://{R2}", "auto", "path"), f"https://{R2}/bkt/k"),
        ("http://10.0.0.5:9000", "bkt", ("http://10.0.0.5:9000", "us-east-1", "path"),
         "http://10.0.0.5:9000/bkt/k"),
        ("http://[::1]:9000", "bkt", ("http://[::1]:9000", "us-east-1", "path"),
         "http://[::1]:9000/bkt/k"),
        ("http://localhost:9000", "bkt", ("http://localhost:9000", "us-east-1", "path"),
         "http://localhost:9000/bkt/k"),
        ("http://minio:9000", "minio", ("http://minio:9000", "us-east-1", "path"), None),
        ("http://minio.local", "minio", ("http://minio.local", "us-east-1", "path"),
         "http://minio.local/minio/k"),
        ("https://storage.googleapis.com", "bkt",
         ("https://storage.googleapis.com", "us-east-1", "path"), None),
        ("https://ref.supabase.co/storage/v1/s3", "bkt",
         ("https://ref.supabase.co/storage/v1/s3", "us-east-1", "path"),
         "https://ref.supabase.co/storage/v1/s3/bkt/k"),
        ("https://s3api-eu-ro-1.runpod.io/", "vol1",
         ("https://s3api-eu-ro-1.runpod.io", "EU-RO-1", "path"), None),
        # the bucket is the first host label, named again or not
        (f"https://bkt.{AWS}", None, IN_AWS, AT_AWS),
        (f"https://bkt.{AWS}", "bkt", IN_AWS, AT_AWS),
        (f"https://a.bkt.{AWS}", None, DOTTED, AT_DOTTED),
        ("https://bkt.s3.dualstack.eu-west-1.amazonaws.com", None,
         ("https://s3.dualstack.eu-west-1.amazonaws.com", "eu-west-1", "virtual"), None),
        (f"https://bkt.{SPACES}", None, IN_SPACES, AT_SPACES),
        (f"https://bkt.{SPACES}", "bkt", IN_SPACES, None),
        ("https://bkt.s3.us-west-004.backblazeb2.com", None,
         ("https://s3.us-west-004.backblazeb2.com", "us-west-004", "virtual"), None),
        (f"https://bkt.{R2}", "bkt", (f"https://{R2}", "auto", "virtual"), f"https://bkt.{R2}/k"),
        ("https://bkt.minio.example:9000", "bkt",
         ("https://minio.example:9000", "us-east-1", "virtual"),
         "https://bkt.minio.example:9000/k"),
        # the bucket is the path, named again or not
        ("https://minio.example/bkt", None, ("https://minio.example", "us-east-1", "path"),
         "https://minio.example/bkt/k"),
        ("https://minio.example/bkt/", "bkt", ("https://minio.example", "us-east-1", "path"), None),
        ("http://127.0.0.1:9000/bkt", None, ("http://127.0.0.1:9000", "us-east-1", "path"), None),
        (f"https://{R2}/bkt", None, (f"https://{R2}", "auto", "path"), f"https://{R2}/bkt/k"),
        (f"https://{AWS}/bkt", None, IN_AWS, AT_AWS),
        (f"https://bkt.{AWS}/bkt", None, IN_AWS, None),
    ],
)  # fmt: skip
def test_an_endpoint_is_understood_in_each_of_its_forms(
    url: str, name: str | None, expected: tuple[str, str, str], signed: str | None
) -> None:
    found = find_bucket(url, name)
    assert (found.endpoint, found.region, found.addressing) == expected
    assert found.name in (name, "bkt", "a.bkt")
    if signed:
        storage = S3Storage(settings(bucket_endpoint_url=url, bucket_name=name))
        assert storage._url("k").split("?")[0] == signed


@pytest.mark.parametrize(
    "url", ["https://s3api-eu-ro-1.runpod.io", "https://s3api-us-ks-2.runpod.io/"]
)
def test_a_network_volume_serves_no_signed_links(url: str) -> None:
    volume = {"bucket_endpoint_url": url, "bucket_name": "vol1"}
    with pytest.raises(ConfigurationError) as caught:
        S3Storage(settings(**volume))
    assert str(caught.value).startswith("BUCKET_ENDPOINT_URL is a Runpod network volume")
    assert "WAN_PUBLIC_BASE_URL" in str(caught.value)
    storage = S3Storage(settings(**volume, public_base_url="https://pub.example.com/clips"))
    assert storage._url("a b") == "https://pub.example.com/clips/a%20b"


def test_region_and_addressing_can_be_set() -> None:
    found = find_bucket(f"https://bkt.{AWS}", None, "eu-north-1", "path")
    assert found == Bucket(f"https://{AWS}", "bkt", "eu-north-1", "path")
    found = find_bucket("https://minio.example", "bkt", None, "virtual")
    assert found == Bucket("https://minio.example", "bkt", "us-east-1", "virtual")
    found = find_bucket("https://store.minio.example", "store", None, "path")
    assert found == Bucket("https://store.minio.example", "store", "us-east-1", "path")


@pytest.mark.parametrize(
    "host",
    [AWS, "s3.amazonaws.com", "minio.local", "localhost:9000", "10.0.0.5", R2, SPACES,
     "bkt.minio.example", "abc.r2.cloudflarestorage.com", "host/some/path"],
)  # fmt: skip
def test_an_endpoint_without_a_bucket_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match="set BUCKET_NAME"):
        find_bucket(f"https://{host}")


@pytest.mark.parametrize(
    "url", ["", "minio:9000", "ftp://h/b", "https://", "http://h:x/b", "http://["]
)
def test_a_text_that_is_not_an_endpoint_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="must start with https:// or http://"):
        find_bucket(url, "bkt")


@pytest.mark.parametrize(
    "url", [f"https://other.{AWS}", f"https://{AWS}/other", f"https://bkt.{AWS}/folder"]
)
def test_contradicting_buckets_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="make the two agree"):
        find_bucket(url, "bkt")
