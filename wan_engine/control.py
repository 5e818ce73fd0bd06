"""Carries a job's identity, cancellation, deadlines and progress through every step. Every verb of
the engine takes it.

It knows nothing of what the work is.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from wan_engine.errors import Cancelled, DeadlineExceeded

_WATCH_INTERVAL_SECONDS = 0.05
HANG_SECONDS = 300.0
"""How long the work may give no sign of life, where nobody says otherwise."""


@dataclass(frozen=True)
class Progress:
    """`step` of `steps` done in `stage`; both count over the whole job, not over one segment of
    it."""

    stage: str
    step: int
    steps: int


class Watch:
    """The state of one `Control.watch`: `expired` once its own time limit has passed."""

    def __init__(self) -> None:
        self.expired = False
        self._done = threading.Event()


class Control:
    """Cancellation, deadline and progress of one job. Safe to use from several threads.

    `on_progress` is called on the thread that works, so it must be quick. Without a `job_id` the
    job gets a new one; a job id that was finished before gets its old result.

    `hang_seconds` is how long any part of the work may give no sign of life, `step_seconds` how
    long a step of the model may, where that is longer. `sign_at` is when the last sign came, by
    `time.monotonic()`: every call of `progress`, `enter` and `checkpoint` is one. `has_device` is
    whether the job works on the model's device.
    """

    def __init__(
        self,
        job_id: str | None = None,
        *,
        deadline_seconds: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        hang_seconds: float = HANG_SECONDS,
    ) -> None:
        self.job_id = job_id or uuid.uuid4().hex
        self.hang_seconds, self.step_seconds = hang_seconds, 0.0
        self.has_device = False
        self.stage_seconds: dict[str, float] = {}
        self._cancel = threading.Event()
        self._on_progress = on_progress
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
        """The stage that was entered last; None before the first and after the last."""
        return self._stage

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the deadline, below zero when it has passed; None without one."""
        if self._limit_seconds is None:
            return None
        return self._limit_seconds - (time.monotonic() - self._limit_from)

    @property
    def must_end(self) -> bool:
        """Whether it was cancelled, or its deadline has passed."""
        left = self.seconds_left
        return self.cancelled or (left is not None and left <= 0)

    def limit(self, seconds: float) -> None:
        """Give a job that was begun without a deadline one, that many seconds from now."""
        if not self._limit_is_given:
            self._limit_from, self._limit_seconds = time.monotonic(), seconds

    def checkpoint(self) -> None:
        """Raise `Cancelled` or `DeadlineExceeded` when the job must not go on."""
        self.sign_at = time.monotonic()
        if self.cancelled:
            raise Cancelled
        left = self.seconds_left
        if left is not None and left <= 0:
            assert self._limit_seconds is not None
            raise DeadlineExceeded(self._limit_seconds)

    def progress(self, stage: str, step: int, steps: int) -> None:
        """Report, account the time since the last report to its stage, and stop here if the job
        must."""
        self.enter(stage)
        if self._on_progress is not None:
            self._on_progress(Progress(stage, step, steps))
        self.checkpoint()

    def enter(self, stage: str | None) -> None:
        """Account the time since the last call to the stage that was named there."""
        now = self.sign_at = time.monotonic()
        if self._stage is not None:
            spent = self.stage_seconds.get(self._stage, 0.0)
            self.stage_seconds[self._stage] = spent + now - self._stage_started
        self._stage, self._stage_started = stage, now

    @contextmanager
    def within(self, stage: str) -> Iterator[None]:
        """Account what happens inside to `stage`, and what follows to the stage before it."""
        before = self._stage
        self.enter(stage)
        try:
            yield
        finally:
            self.enter(before)

    @contextmanager
    def watch(self, stop: Callable[[], None], seconds: float | None = None) -> Iterator[Watch]:
        """Call `stop` once, from another thread, when the job must end or `seconds` have passed.

        For work that cannot look by itself: a blocked socket, another process. `stop` must make
        that work fail; the caller then asks `checkpoint()` and `Watch.expired` why.
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
