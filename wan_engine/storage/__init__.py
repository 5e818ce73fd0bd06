"""Stores finished clips in a bucket or a folder, and finds them again by their job id.

It owns keys, URLs, the record that makes a job id idempotent, and the spool in which clips wait for
a bucket that is away. It reads neither clips nor the caller's part of a record.
"""

from __future__ import annotations

import logging

from wan_engine.errors import ConfigurationError
from wan_engine.settings import Settings, env_name
from wan_engine.storage.base import Storage, Store
from wan_engine.storage.bucket import Bucket, find_bucket
from wan_engine.storage.given import given_bucket, open_given, unknown_fields
from wan_engine.storage.local import LocalStorage
from wan_engine.storage.records import ClipId, job_name
from wan_engine.storage.retries import RetryLimits
from wan_engine.storage.s3 import BUCKET_KEYS, URL_SECONDS, S3Storage
from wan_engine.storage.spool import CrashCounts, SpooledStorage

__all__ = [
    "URL_SECONDS",
    "Bucket",
    "ClipId",
    "CrashCounts",
    "LocalStorage",
    "RetryLimits",
    "S3Storage",
    "SpooledStorage",
    "Storage",
    "Store",
    "find_bucket",
    "given_bucket",
    "job_name",
    "open_given",
    "open_storage",
    "unknown_fields",
    "uses_bucket",
]

log = logging.getLogger(__name__)


def open_storage(settings: Settings, *, lasting: bool = False) -> Storage:
    """Open the storage that the settings ask for, without contacting it.

    `lasting` does not fall back to a folder of this machine: the settings must name one. Raises
    `ConfigurationError`.
    """
    store = _open_store(settings, lasting)
    if settings.spool_dir is None:
        return store
    return SpooledStorage(store, settings.spool_dir, settings.keep_days)


def uses_bucket(settings: Settings) -> bool:
    """Whether clips go to a bucket. Otherwise they go to a folder."""
    return settings.storage == "s3" or (settings.storage == "auto" and settings.has_bucket)


def _open_store(settings: Settings, lasting: bool) -> Store:
    if uses_bucket(settings):
        return S3Storage(settings)
    given = [env_name(key) for key in BUCKET_KEYS if getattr(settings, key)]
    missing = [env_name(key) for key in BUCKET_KEYS if not getattr(settings, key)]
    if settings.storage == "auto" and lasting:
        raise ConfigurationError(
            "No bucket is set, and the disk of a serverless worker is lost with it. Set "
            f"{', '.join(missing)}, or WAN_STORAGE=local to keep clips here."
        )
    if settings.storage == "auto" and given:
        log.warning("bucket not used, only %s set: clips stay local", ", ".join(given))
    return LocalStorage(settings.output_dir)
