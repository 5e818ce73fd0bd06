"""Defines the interface of a backend, and the work that the dispatcher hands to it.

A `Work` is made by `Dispatcher._work` (`jobs/dispatch.py`), whose callables change the job; a
`Backend` is `LocalBackend` (`local.py`) or `EndpointBackend` (`endpoint.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from wan_engine.control import Progress
from wan_engine.schema import Task


@dataclass(frozen=True)
class Work:
    """One start of a job, for a model of `task`. `seconds` is how long it may run from its begin.
    `request` reads the request, which may be megabytes: hold it no longer than it is needed.
    `render` names what this start is to make: a start that may have been made before has the same
    name, a retry another.

    `remote_id` is what an earlier start told `remote`. `begin` must be awaited when the work really
    begins, with the worker's name if it has one; `progress` may be called at any time. `leaving`
    tells, when the run is cancelled, whether the gateway ends and the job will be run again.
    """

    job_id: str
    task: Task
    render: str
    request: Callable[[], Awaitable[Mapping[str, Any]]]
    seconds: float | None
    remote_id: str | None
    begin: Callable[[str | None], Awaitable[None]]
    progress: Callable[[Progress], None]
    remote: Callable[[str | None], Awaitable[None]]
    leaving: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Done:
    """`output` as `VideoResult.output()` has it."""

    output: Mapping[str, Any]
    stage_seconds: Mapping[str, float] = field(default_factory=dict)


class WorkFailed(Exception):
    """The job has failed for good: a code of `wan_engine.errors` and the sentence for the
    caller."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


class WorkerLost(Exception):
    """Whoever worked on it is gone, and nothing is known of the job: another may take it.

    A clip that was stored before is found by the job's id and not rendered again. `blamed` is
    whether the job may have ended the worker: not one that waited while another did.
    """

    def __init__(self, *, blamed: bool = True) -> None:
        super().__init__()
        self.blamed = blamed


class Backend(Protocol):
    """`run` may be called `slots` times at once. What is rendered `outlives` this process, where
    it goes on elsewhere and is found again by `Work.remote_id`."""

    slots: int
    outlives: bool
    models: Mapping[Task, str] | None
    """The names of its models by task, once it has told them."""

    async def start(self) -> None:
        """Begin to get ready; returns at once."""

    async def run(self, work: Work) -> Done:
        """Render. Raises `WorkFailed` and `WorkerLost`. Cancelled, it ends the work, waits until
        nothing of it runs any longer, and raises `CancelledError`."""

    def waiting_for(self) -> str | None:
        """What is not ready yet, in words for the operator; None when jobs can be rendered."""

    def abandon(self) -> None:
        """End at once what is rendered on this machine; what is elsewhere goes on."""

    async def close(self) -> None:
        """End everything that `start` began."""
