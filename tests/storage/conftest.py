"""The HTTP server of moto, an empty bucket in it, and both stores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from moto.server import ThreadedMotoServer

from benchmarks.services.faults import FaultProxy
from tests.storage.stores import (
    BUCKET,
    PREFIX,
    Store,
    eventually,
    local_store,
    make_clip,
    s3_store,
    settings,
    working,
)
from wan_engine.settings import Settings
from wan_engine.storage import SpooledStorage


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("AWS_", "BUCKET_", "WAN_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint: str) -> Iterator[Any]:
    """A client of the test, and an empty bucket."""
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
    client.create_bucket(Bucket=BUCKET)
    yield client
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])
    client.delete_bucket(Bucket=BUCKET)
    client.close()


@pytest.fixture
def bucket_settings(s3: Any, endpoint: str) -> dict[str, Any]:
    return {"bucket_endpoint_url": endpoint, "bucket_name": BUCKET, "s3_prefix": f"/{PREFIX}/"}


@pytest.fixture
def proxy(endpoint: str) -> Iterator[FaultProxy]:
    parts = urlsplit(endpoint)
    assert parts.hostname and parts.port
    found = FaultProxy(parts.hostname, parts.port)
    yield found
    found.close()
    assert eventually(lambda: not working())


@pytest.fixture
def behind(proxy: FaultProxy, bucket_settings: dict[str, Any]) -> Settings:
    """The bucket, behind the proxy."""
    return settings(**{**bucket_settings, "bucket_endpoint_url": proxy.url})


@pytest.fixture(params=["local", "s3", "spooled local", "spooled s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param.endswith("local"):
        found = local_store(tmp_path / "made" / "on demand")
    else:
        values = request.getfixturevalue("bucket_settings")
        found = s3_store(request.getfixturevalue("s3"), values)
    if request.param.startswith("spooled"):
        found.storage = SpooledStorage(found.storage, tmp_path / "spool")
    return found


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path)
