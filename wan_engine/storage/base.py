"""What the engine asks of a storage, and what the spool asks of the store behind it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from wan_engine.control import Control
from wan_engine.storage.records import Clip


class Storage(Protocol):
    def put(self, path: Path, job_id: str, record: Mapping[str, Any], control: Control) -> str:
        """Store the mp4 and then `record` under the job's id. Returns the URL of the mp4.

        Raises `StorageFailed`, and `Cancelled` or `DeadlineExceeded` of `control`; what a
        cancelled job has stored is taken back.
        """

    def finished(self, job_id: str, control: Control) -> tuple[str, dict[str, Any]] | None:
        """A fresh URL and the record of a job that was stored already and still exists.

        A store that cannot be asked is logged and counts as None. Raises `Cancelled` and
        `DeadlineExceeded`, and `StorageFailed` when the clip is there but cannot be delivered.
        """

    def claim(self, job_id: str, holder: str, control: Control) -> str | None:
        """Who renders it: `holder`, unless another was first. None, and logged, where the store
        cannot tell. Raises `Cancelled` and `DeadlineExceeded`."""

    def flush(self) -> None:
        """Store what waits since the store was away. Logs what goes wrong, raises nothing."""

    def check(self) -> str:
        """One line: where clips go, `Warned` where some of it is not allowed. It writes, reads and
        removes what is small. Raises `ConfigurationError` where clips would be lost."""


class Store(Storage, Protocol):
    """A storage that can be asked for the same clip more than once."""

    def store(self, path: Path, clip: Clip, record: Mapping[str, Any], control: Control) -> str:
        """As `put`, but repeating it replaces the same object, so several workers may at once.

        A record that is not stored raises `StorageFailed` too, and nothing is taken back.
        """
