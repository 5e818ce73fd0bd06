"""Stores with direct access for tests, and helpers of all storage tests."""

from __future__ import annotations

import os
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wan_engine.control import Control
from wan_engine.settings import Settings
from wan_engine.storage import LocalStorage, RetryLimits, S3Storage, SpooledStorage, job_name

MIB = 1024 * 1024
BUCKET, PREFIX = "clips-bucket", "wan clips/v1"
ACCESS_KEY, SECRET_KEY = "AKIDEXAMPLE0000TEST", "secret/EXAMPLE+key"
ONCE = RetryLimits(attempts=1)
# A busy machine must not look like a stall, except where only stalls are tested.
QUICK = RetryLimits(
    connect_seconds=0.8, read_seconds=8, backoff_seconds=0.02, put_seconds=30, find_seconds=10
)
HASTY = replace(QUICK, connect_seconds=0.4, read_seconds=0.4)
SLOW = RetryLimits(backoff_seconds=0.02)  # the times of production, except for the gaps
RECORD = {"cost": 0.5, "seed": 7, "warnings": ["texture é"]}
ODD_IDS = [
    "a/b", "a-b", "a.b", "a b", "../../etc/passwd", "..", ".", "", "/", "é", "日本", "\ud800",
    "a\0b", "x" * 500, "x" * 501, "x" * 64, "x" * 65, "f1c3-4d5e-u1", job_name("a/b"),
    job_name("x" * 500),
]  # fmt: skip


class StopAt(Control):
    """Is cancelled at the given checkpoint."""

    def __init__(self, checkpoint: int) -> None:
        super().__init__()
        self.left = checkpoint

    def checkpoint(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.cancel()
        super().checkpoint()


@dataclass
class Store:
    """A storage, and direct access for its tests: names and bytes of everything in it."""

    storage: LocalStorage | S3Storage | SpooledStorage
    contents: Callable[[], dict[str, bytes]]
    write: Callable[[str, bytes | None], None]

    def records(self) -> list[str]:
        return [name for name in self.contents() if name.endswith(".json")]

    def clips(self) -> list[str]:
        return [name for name in self.contents() if name.endswith(".mp4")]


def settings(**values: Any) -> Settings:
    keys = {"bucket_access_key_id": ACCESS_KEY, "bucket_secret_access_key": SECRET_KEY}
    return Settings(**{**keys, **values})


def local_store(folder: Path) -> Store:
    def contents() -> dict[str, bytes]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    def write(name: str, data: bytes | None) -> None:
        (folder / name).unlink() if data is None else (folder / name).write_bytes(data)

    return Store(LocalStorage(folder), contents, write)


def s3_store(client: Any, values: dict[str, Any]) -> Store:
    def contents() -> dict[str, bytes]:
        items = client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        get = client.get_object
        return {i["Key"]: get(Bucket=BUCKET, Key=i["Key"])["Body"].read() for i in items}

    def write(name: str, data: bytes | None) -> None:
        if data is None:
            client.delete_object(Bucket=BUCKET, Key=name)
        else:
            client.put_object(Bucket=BUCKET, Key=name, Body=data)

    return Store(S3Storage(settings(**values)), contents, write)


def make_clip(folder: Path, size: int = 3000) -> Path:
    path = folder / "clip.mp4"
    path.write_bytes(os.urandom(size))
    return path


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return bytes(answer.read())


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def working() -> bool:
    """Whether a thread started by a storage is left."""
    names = ("store", "undo", "flush")
    return any(thread.name in names for thread in threading.enumerate())
