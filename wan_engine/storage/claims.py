"""Makes sure that a job is rendered once, even if its sender submits it twice.

A gateway that dies after an endpoint accepted a job, but before it stored the job's id, sends the
job again. So it names the render in the input of the job. The first job with that name claims it in
the storage and renders. The others answer at once with the id of the first.

This module knows nothing about rendering. Only the worker of an endpoint uses the name, because
anyone who may call the endpoint may see everything that it made.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wan_engine.control import Control
from wan_engine.errors import InvalidRequest
from wan_engine.storage.base import Storage

log = logging.getLogger(__name__)

FIELD = "wan_claim"
"""The key in a job's input with the name of its render."""

ERROR_CODE = "error_code"
"""The key beside a failed job's sentence, for a sender that names its renders:
`EngineError.code`."""

_DUPLICATE_OF = "duplicate_of"
_NAME = re.compile(r"[!-~]{1,200}")  # printable ASCII without blanks
_REMOTE_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


def named(payload: object) -> bool:
    """Whether a job's input names its render, rightly or not."""
    return isinstance(payload, Mapping) and FIELD in payload


def taken(payload: object) -> tuple[str | None, object]:
    """Take the name of the render out of a job's input. Returns the name and the rest. Raises
    `InvalidRequest`."""
    if not isinstance(payload, Mapping) or FIELD not in payload:
        return None, payload
    rest = {name: value for name, value in payload.items() if name != FIELD}
    claim = payload[FIELD]
    if not isinstance(claim, str) or not _NAME.fullmatch(claim):
        raise InvalidRequest(
            f'field "{FIELD}" must be 1 to 200 characters of printable ASCII without blanks'
        )
    return claim, rest


def once(
    claim: str, storage: Storage, control: Control, render: Callable[[Storage], dict[str, Any]]
) -> dict[str, Any]:
    """Call `render` with the storage to use and return its result, or the id of the job that
    renders it already. Raises `Cancelled`, `DeadlineExceeded`, and whatever `render` raises.

    A job that moves to another worker keeps its id, and so its claim. If nothing can be claimed, it
    is rendered.
    """
    own = _Claimed(storage, claim)
    holder = own.claim(claim, control.job_id, control)
    # The endpoint soon forgets the result of an ended job, but its clip remains.
    if holder in (None, control.job_id) or own.finished(claim, control) is not None:
        return render(own)
    log.info("job %s is rendered as job %s already", control.job_id, holder)
    return {_DUPLICATE_OF: holder}


def duplicate_of(output: object) -> str | None:
    """The id, in a job's output, of the job that already renders it. None for any other output."""
    found = output.get(_DUPLICATE_OF) if isinstance(output, Mapping) else None
    return found if isinstance(found, str) and _REMOTE_ID.fullmatch(found) else None


class _Claimed:
    """`storage`, which finds the clip by the name of its render instead of the id of its job."""

    def __init__(self, storage: Storage, claim: str) -> None:
        self._storage = storage
        self._name = f"claim/{claim}"  # no job has such an id

    def put(self, path: Path, _job_id: str, record: Mapping[str, Any], control: Control) -> str:
        return self._storage.put(path, self._name, record, control)

    def finished(self, _job_id: str, control: Control) -> tuple[str, dict[str, Any]] | None:
        return self._storage.finished(self._name, control)

    def claim(self, _job_id: str, holder: str, control: Control) -> str | None:
        return self._storage.claim(self._name, holder, control)

    def flush(self) -> None:
        self._storage.flush()

    def check(self) -> str:
        return self._storage.check()
