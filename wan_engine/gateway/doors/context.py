"""Defines what the gateway passes to a door: its jobs, links and settings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from fastapi import Request

from wan_engine.gateway.http.body import Body
from wan_engine.gateway.job import Job, NewJob
from wan_engine.gateway.jobs.service import Jobs
from wan_engine.gateway.links import Links
from wan_engine.gateway.refusals import Refusal
from wan_engine.schema import Input, Task
from wan_engine.schema.pricing import cost
from wan_engine.settings import Settings

_WAIT_SECONDS = 2.0  # between checks whether a waiting caller is still connected


@dataclass(frozen=True)
class Context:
    """Everything that a door may use.

    The owner of a request is `request.state.owner`, the name of its key. The guard has checked it
    before a route runs. Pass it to every call of `jobs`, which then finds only the jobs of that
    owner.
    """

    settings: Settings
    jobs: Jobs
    links: Links
    waiting_for: Callable[[], str | None]
    """The reason why rendering cannot begin yet, for the operator. None if it can begin."""
    models: Callable[[], Mapping[Task, str] | None] = lambda: None
    """The names of the models by task, if they are known."""
    takes: Callable[[], Mapping[Task, Collection[Input]] | None] = lambda: None
    """The inputs of these models besides the prompt, if they are known."""
    loras: Callable[[], Mapping[Task, Collection[str]] | None] = lambda: None
    """The names of the LoRA files that each model takes, if they are known."""

    async def submit(self, request: Request, *new: NewJob) -> tuple[Job, ...]:
        """Call `jobs.submit`. Once the jobs are stored, the request no longer counts as in
        flight."""
        jobs = await self.jobs.submit(*new)
        body: Body = request.state.body
        body.close()
        return jobs

    async def ended(self, job: Job, request: Request) -> Job:
        """Wait until the job has ended, and return it. If the caller disconnects, the job is
        cancelled, because nobody else knows its id. Raises `Refusal` if the gateway is about to
        end."""
        jobs = self.jobs
        while not (job := await jobs.wait(job, _WAIT_SECONDS)).final:
            closed = jobs.closed
            if closed or await request.is_disconnected():
                job = await jobs.cancel(job)
            if closed and not job.final:
                raise Refusal("unavailable", "The server is stopping, please try again")
        return job

    def price(self, size: str, seconds: int, task: Task = "image-to-video") -> Decimal:
        """The price in USD of a clip of `size` ("1280*720" or "1920*1080")."""
        return cost(size, seconds, self.settings.prices, task)

    def serves(self, task: Task) -> bool:
        """Whether a model of `task` is configured. True while the models are not known."""
        models = self.models()
        return models is None or task in models

    def base_url(self, request: Request) -> str:
        """The URL at which this caller reaches the gateway, without a slash at the end."""
        return (self.settings.public_url or str(request.base_url)).rstrip("/")


async def read_json(request: Request) -> Any:
    """Return the body as JSON, whatever its content type says. The guard has received it already.
    Raises `Refusal`."""
    body: Body = request.state.body
    return await body.json()
