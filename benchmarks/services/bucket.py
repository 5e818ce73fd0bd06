"""A bucket behind a proxy that can break it, for workers that store clips as in production."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

from benchmarks.services.faults import FaultProxy

_BUCKET = "clips"
_KEYS = {"BUCKET_ACCESS_KEY_ID": "AKIDEXAMPLE", "BUCKET_SECRET_ACCESS_KEY": "example-secret"}


@dataclass
class Bucket:
    """`proxy` stands between the worker and the store. `client` bypasses it."""

    proxy: FaultProxy
    client: Any

    def settings(self) -> dict[str, str]:
        """The settings with which a worker stores here."""
        url = f"{self.proxy.url}/{_BUCKET}"
        return {"WAN_STORAGE": "s3", "BUCKET_ENDPOINT_URL": url, **_KEYS}

    def clips(self) -> list[str]:
        return [item["Key"] for item in self.objects(_BUCKET) if item["Key"].endswith(".mp4")]

    def objects(self, name: str) -> list[dict[str, Any]]:
        return list(self.client.list_objects_v2(Bucket=name).get("Contents", []))


@contextmanager
def opened_bucket() -> Iterator[Bucket]:
    """An empty bucket of moto's server, behind its proxy."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    url = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys)
    client.create_bucket(Bucket=_BUCKET)
    proxy = FaultProxy(host, port)
    yield Bucket(proxy, client)
    proxy.close()
    client.close()
    server.stop()
