"""Defines the interface of a backend, and the work that the dispatcher hands to it.

`Dispatcher._work` (`jobs/dispatch.py`) makes a `Work`, and its callables change the job. The
backends are `LocalBackend` (`own_engine.py`) and `EndpointBackend` (`endpoint.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from wan_engine.control import Preview, Progress
from wan_engine.schema import Input, Task


@dataclass(frozen=True)
class Work:
    """One start of a job, for a model of `task`. `seconds` is its time limit from the begin of the
    work. `request` reads the request, which may be megabytes, so do not hold it longer than needed.
    `render` identifies the render of this start: a start that may repeat an earlier one has the
    same name, a retry has another.

    `remote_id` is the id that an earlier start passed to `remote`. Await `begin` when the work
    begins, with the worker's name if it has one; call `progress` at any time. If the run is
    cancelled, `leaving` says whether the gateway is ending and the job will run again. Call
    `preview` only while `wants_preview` says that anyone looks.
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
    preview: Callable[[Preview], None] = lambda _preview: None
    wants_preview: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Done:
    """The result of a job. `output` has the form of `VideoResult.output()`."""

    output: Mapping[str, Any]
    stage_seconds: Mapping[str, float] = field(default_factory=dict)


class WorkFailed(Exception):
    """The job has failed for good, with a code of `wan_engine.errors` and the sentence for the
    caller."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


class WorkerLost(Exception):
    """The worker is gone, and the state of the job is unknown: another worker may take it.

    A clip that was already stored is found by the job's id and not rendered again. `blamed`: the
    job may have crashed the worker. It is not set for a job that only waited.
    """

    def __init__(self, *, blamed: bool = True) -> None:
        super().__init__()
        self.blamed = blamed


class Backend(Protocol):
    """A backend. `run` may be called `slots` times at once. If `outlives` is set, a render
    continues elsewhere after this process ends, and is found again by `Work.remote_id`."""

    slots: int
    outlives: bool
    models: Mapping[Task, str] | None
    """The names of its models by task, once they are known."""
    takes: Mapping[Task, Collection[Input]] | None
    """The inputs of these models besides the prompt, once they are known."""
    loras: Mapping[Task, Collection[str]] | None
    """The names of the LoRA files that a request may have, by the task of the model that takes
    them. None if the backend cannot tell them."""

    async def start(self) -> None:
        """Start, without waiting until it is ready."""

    async def run(self, work: Work) -> Done:
        """Render. Raises `WorkFailed` and `WorkerLost`. If it is cancelled, it stops the work,
        waits until nothing of it runs, and raises `CancelledError`."""

    def waiting_for(self) -> str | None:
        """The part that is not ready yet, in words for the operator. None if jobs can be
        rendered."""

    def abandon(self) -> None:
        """Stop all renders on this machine at once. Renders elsewhere continue."""

    async def close(self) -> None:
        """Stop everything that `start` started."""
