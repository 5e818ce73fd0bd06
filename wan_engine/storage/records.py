"""Names jobs and their clips, and writes the record that makes a job id idempotent.

It neither stores them nor reads the caller's part of a record.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

log = logging.getLogger(__name__)

NOT_STORED = "The finished clip could not be stored"
NO_RECORD = "no record of job %s, so a repeat would render again: %s"  # but its clip is stored
NO_CLAIM = "job %s not claimed, so if it was sent twice it is rendered twice: %s"
NOT_READ = "record of job %s not read, so it is rendered: %s"


def job_name(job_id: str) -> str:
    """A name of at most 64 of [A-Za-z0-9_-] for any job id. Two ids never share a name."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", job_id)
    # An id that looks like a name with a digest gets a digest too, because it could equal another
    # id's name.
    if name == job_id and 0 < len(name) <= 64 and not re.search(r"-[0-9a-f]{16}$", name):
        return name
    digest = hashlib.sha256(job_id.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{name[:47]}-{digest[:16]}"


@dataclass(frozen=True)
class ClipId:
    """Tells one rendering of a job from any other. A store derives the clip's key from this alone,
    and always gets the same key."""

    job_id: str
    made: datetime  # UTC, whole seconds
    token: str  # 32 hexadecimal digits

    @classmethod
    def new(cls, job_id: str) -> ClipId:
        return cls(job_id, datetime.now(UTC).replace(microsecond=0), uuid4().hex)

    @property
    def job(self) -> str:
        return job_name(self.job_id)


def encode_record(record: Mapping[str, Any], key: str) -> bytes:
    return json.dumps({**record, "key": key}).encode()


def decode_record(data: bytes, job_id: str) -> tuple[str, dict[str, Any]] | None:
    """The clip's key and the caller's part of the record. None, with a line in the log, if it is
    damaged."""
    try:
        stored = json.loads(data)
        key = stored.pop("key")
        key.encode()
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning(NOT_READ, job_name(job_id), "it is damaged")
        return None
    return key, stored


def encode_claim(holder: str) -> bytes:
    return json.dumps({"holder": holder}).encode()


def decode_claim(data: bytes, job_id: str) -> str | None:
    """The holder of the claim. None, with a line in the log, if it is damaged."""
    try:
        holder = json.loads(data)["holder"]
    except (ValueError, KeyError, TypeError):
        holder = None
    if isinstance(holder, str):
        return holder
    log.warning(NO_CLAIM, job_name(job_id), "the claim is damaged")
    return None
