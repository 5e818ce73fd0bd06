"""Keeps the newest preview of each job that anyone looks at, in memory only."""

from __future__ import annotations

import time

from wan_engine.control import Preview

_LOOK_SECONDS = 10.0  # a page polls every second, and does not say when it is closed
_LONGEST_URI = 64 * 1024


class Previews:
    """At most one preview per job. `Jobs` removes those of ended jobs."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._newest: dict[str, Preview] = {}

    def look(self, job_id: str, known: int) -> Preview | None:
        """The newest preview, unless its step is `known`. For some seconds from now on, the job
        counts as looked at."""
        self._until[job_id] = time.monotonic() + _LOOK_SECONDS
        newest = self._newest.get(job_id)
        return None if newest is None or newest.step == known else newest

    def wanted(self, job_id: str) -> bool:
        """Whether anyone looks at the job."""
        return time.monotonic() < self._until.get(job_id, 0.0)

    def put(self, job_id: str, preview: Preview) -> None:
        """Replace the preview of the job. Does nothing if nobody looks, or if it is too large."""
        if self.wanted(job_id) and len(preview.uri) <= _LONGEST_URI:
            self._newest[job_id] = preview

    def forget(self, job_id: str) -> None:
        self._newest.pop(job_id, None)
        self._until.pop(job_id, None)
