"""Carries a job's id, cancellation, deadlines and progress through every step. Every method of the
engine accepts a `Control`, which knows nothing about the work."""

from __future__ import annotations

import base64
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from wan_engine.errors import Cancelled, DeadlineExceeded

_WATCH_INTERVAL_SECONDS = 0.05
HANG_SECONDS = 300.0
"""Default limit for work without progress, in seconds."""


@dataclass(frozen=True)
class Progress:
    """`step` of `steps` done in `stage`. Both count over the whole job, not per segment."""

    stage: str
    step: int
    steps: int


@dataclass(frozen=True)
class Preview:
    """A small picture of the clip after `step` of all its steps, as a data URI."""

    uri: str
    step: int

    @property
    def content(self) -> bytes:
        """The file that the URI contains."""
        return base64.b64decode(self.uri.partition(",")[2])


class Watch:
    """The state of one `Control.watch`. `expired` is set once its time limit has passed."""

    def __init__(self) -> None:
        self.expired = False
        self._done = threading.Event()


class Control:
    """Cancellation, deadline and progress of one job. Thread-safe.

    `on_progress` is called on the working thread, so it must be quick. Without a `job_id` the job
    gets a new one. A job id that was finished before gets its old result.

    `hang_seconds` limits how long any part of the work may go without progress, and `step_seconds`
    how long a step of the model may, if that is longer. `sign_at` is the time of the last progress
    by `time.monotonic()`: every call of `progress`, `enter` and `checkpoint`. `has_device`: the job
    is using the model's device.

    `on_preview` is called on the working thread too. Previews are made until the time
    `preview_until` by `time.monotonic()`, and none is computed after it or without `on_preview`.
    """

    def __init__(
        self,
        job_id: str | None = None,
        *,
        deadline_seconds: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_preview: Callable[[Preview], None] | None = None,
        hang_seconds: float = HANG_SECONDS,
    ) -> None:
        self.job_id = job_id or uuid.uuid4().hex
        self.hang_seconds, self.step_seconds = hang_seconds, 0.0
        self.has_device = False
        self.stage_seconds: dict[str, float] = {}
        self._cancel = threading.Event()
        self._on_progress, self._on_preview = on_progress, on_preview
        self.preview_until = math.inf
        self._limit_seconds = deadline_seconds
        self._limit_is_given = deadline_seconds is not None
        self._limit_from = self._stage_started = self.sign_at = time.monotonic()
        self._stage: str | None = None

    def cancel(self) -> None:
        self._cancel.set()

    @property
    def cancelled(self) -> bool:
        return self._cancel.is_set()

    @property
    def stage(self) -> str | None:
        """The current stage. None before the first and after the last."""
        return self._stage

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the deadline, negative after it. None without a deadline."""
        if self._limit_seconds is None:
            return None
        return self._limit_seconds - (time.monotonic() - self._limit_from)

    @property
    def must_end(self) -> bool:
        """Whether the job was cancelled or its deadline has passed."""
        left = self.seconds_left
        return self.cancelled or (left is not None and left <= 0)

    def limit(self, seconds: float) -> None:
        """Set a deadline this many seconds from now, if the job has none."""
        if not self._limit_is_given:
            self._limit_from, self._limit_seconds = time.monotonic(), seconds

    def checkpoint(self) -> None:
        """Raise `Cancelled` or `DeadlineExceeded` if the job must stop."""
        self.sign_at = time.monotonic()
        if self.cancelled:
            raise Cancelled
        left = self.seconds_left
        if left is not None and left <= 0:
            assert self._limit_seconds is not None
            raise DeadlineExceeded(self._limit_seconds)

    def progress(self, stage: str, step: int, steps: int) -> None:
        """Report progress, account the time since the last report to its stage, and raise if the
        job must stop."""
        self.enter(stage)
        if self._on_progress is not None:
            self._on_progress(Progress(stage, step, steps))
        self.checkpoint()

    @property
    def wants_preview(self) -> bool:
        """Whether anyone looks at previews now."""
        return self._on_preview is not None and time.monotonic() < self.preview_until

    def preview(self, preview: Preview) -> None:
        """Pass on a preview."""
        if self._on_preview is not None:
            self._on_preview(preview)

    def enter(self, stage: str | None) -> None:
        """Enter a stage. The time since the last call counts for the previous stage."""
        now = self.sign_at = time.monotonic()
        if self._stage is not None:
            spent = self.stage_seconds.get(self._stage, 0.0)
            self.stage_seconds[self._stage] = spent + now - self._stage_started
        self._stage, self._stage_started = stage, now

    @contextmanager
    def within(self, stage: str) -> Iterator[None]:
        """Account the time inside the block to `stage`, and the time after it to the previous
        stage."""
        before = self._stage
        self.enter(stage)
        try:
            yield
        finally:
            self.enter(before)

    @contextmanager
    def watch(self, stop: Callable[[], None], seconds: float | None = None) -> Iterator[Watch]:
        """Call `stop` once, from another thread, when the job must stop or `seconds` have passed.

        Use it for work that cannot check by itself, such as a blocked socket or another process.
        `stop` must make that work fail. Then ask `checkpoint()` and `Watch.expired` for the reason.
        """
        watch = Watch()
        limit = None if seconds is None else time.monotonic() + seconds
        thread = threading.Thread(
            target=self._watch_loop, args=(watch, stop, limit), name="watch", daemon=True
        )
        thread.start()
        try:
            yield watch
        finally:
            watch._done.set()
            thread.join()

    def _watch_loop(self, watch: Watch, stop: Callable[[], None], limit: float | None) -> None:
        while not watch._done.wait(_WATCH_INTERVAL_SECONDS):
            watch.expired = limit is not None and time.monotonic() >= limit
            if watch.expired or self.must_end:
                stop()
                return
