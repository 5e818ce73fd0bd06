"""Jobs for the engine process that tests start: real processes and pipes, with an engine that
renders nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.gateway.conftest import PICTURE
from wan_engine.control import Preview, Progress
from wan_engine.gateway.backends.base import Work
from wan_engine.gateway.backends.own_engine import LocalBackend
from wan_engine.gateway.metrics import Metrics
from wan_engine.settings import Settings

FAKE = ("-m", "tests.gateway.fake_engine")


@dataclass
class Asked:
    """One job, and its reports. Without `begins`, its `begin` does not return."""

    backend: LocalBackend
    progress: list[Progress] = field(default_factory=list)
    previews: list[Preview] = field(default_factory=list)
    looks: bool = False
    begun_count: int = 0
    begins: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.begins.set()

    def run(self, prompt: str, job_id: str = "job-1", seconds: float | None = None) -> Any:
        async def begin(worker: str | None) -> None:
            self.begun_count += 1
            await self.begins.wait()

        async def request() -> dict[str, Any]:
            return {"prompt": prompt, "image": PICTURE}

        async def remote(remote_id: str | None) -> None:
            raise AssertionError("there is no queue but the gateway's")

        return self.backend.run(
            Work(
                render="",
                job_id=job_id,
                task="image-to-video",
                request=request,
                seconds=seconds,
                remote_id=None,
                begin=begin,
                progress=self.progress.append,
                remote=remote,
                preview=self.previews.append,
                wants_preview=lambda: self.looks,
            )
        )


@asynccontextmanager
async def opened(
    tmp_path: Path, on_fatal: Callable[[str], None] | None = None, **settings: Any
) -> AsyncIterator[Asked]:
    values = {"output_dir": tmp_path / "outputs", **settings}
    backend = LocalBackend(Settings(**values), Metrics(), on_fatal, command=FAKE)
    await backend.start()
    try:
        yield Asked(backend)
    finally:
        await backend.close()


def pid_of(asked: Asked) -> int:
    assert asked.backend._process is not None
    return asked.backend._process.pid


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
