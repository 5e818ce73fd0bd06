"""Defines the storage that the engine uses, and the store behind the spool."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from wan_engine.control import Control
from wan_engine.storage.records import ClipId


class Storage(Protocol):
    def put(self, path: Path, job_id: str, record: Mapping[str, Any], control: Control) -> str:
        """Store the mp4, then `record` under the id of the job. Returns the URL of the mp4.

        Raises `StorageFailed`, and `Cancelled` or `DeadlineExceeded` of `control`. If the job is
        cancelled, its stored objects are removed.
        """

    def finished(self, job_id: str, control: Control) -> tuple[str, dict[str, Any]] | None:
        """A fresh URL and the record of a job that was stored before and still exists.

        A store that does not answer is logged, and the result is None. Raises `Cancelled` and
        `DeadlineExceeded`, and `StorageFailed` if the clip is there but cannot be delivered.
        """

    def claim(self, job_id: str, holder: str, control: Control) -> str | None:
        """The holder of the job's claim: `holder`, unless another was first. None, with a line in
        the log, if the store cannot tell. Raises `Cancelled` and `DeadlineExceeded`."""

    def flush(self) -> None:
        """Store the clips that waited while the store was away. Logs what fails and raises
        nothing."""

    def check(self) -> str:
        """One line that says where clips go, `Warned` if some rights are missing. Writes, reads and
        removes a small object. Raises `ConfigurationError` if clips would be lost."""


class Store(Storage, Protocol):
    """A storage that may be asked for the same clip more than once."""

    def store(self, path: Path, clip: ClipId, record: Mapping[str, Any], control: Control) -> str:
        """Do what `put` does. Repeating it replaces the same object, so several workers may do it
        at once.

        A record that cannot be stored raises `StorageFailed` too, and nothing is removed.
        """
