"""A backend that renders nothing: it ends jobs at once, or when a test releases them. It is for
tests and loads of the gateway alone, and writes a small real file so that links work.

`python -m benchmarks.services.instant PORT` serves a gateway with it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from uuid import uuid4

from wan_engine.catalog import known_models
from wan_engine.control import Preview, Progress
from wan_engine.gateway.backends.base import Done, Work, WorkerLost, WorkFailed
from wan_engine.gateway.serve import serve
from wan_engine.schema import Input, Task
from wan_engine.settings import Settings

CLIP = bytes(range(256)) * 40


class InstantBackend:
    """`hold()` makes jobs wait for `release()`. A prompt that begins with "fail:" or "lose:" ends
    that way; "spare:" loses its worker three times without blame; "hang" ends only when it is
    cancelled. `models` and `loras` are what the engine offers; without `models`, nothing is known.
    `clip` is the file that it writes."""

    def __init__(self, folder: Path, slots: int = 1) -> None:
        self.slots = slots
        self.outlives = False
        self.rendered: list[str] = []
        self.stopped: list[str] = []
        self.requests: dict[str, object] = {}
        self.spared = 0
        self.why: str | None = None
        self.clip = CLIP
        self.more: Mapping[str, object] = {}  # what its output has besides
        self.at = Progress("denoise", 1, 4)  # while it is held, and so is the preview
        self.preview: Preview | None = None
        self.models: Mapping[Task, str] | None = None
        self.loras: Mapping[Task, Collection[str]] | None = {}
        self._folder = folder
        self._go = asyncio.Event()
        self._go.set()

    def hold(self) -> None:
        self._go.clear()

    def release(self) -> None:
        self._go.set()

    @property
    def takes(self) -> Mapping[Task, Collection[Input]] | None:
        known = known_models()
        named = self.models or {}
        return {task: known[name].takes for task, name in named.items() if name in known}

    async def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

    def waiting_for(self) -> str | None:
        return self.why

    async def close(self) -> None:
        self._go.set()

    def abandon(self) -> None: ...

    async def run(self, work: Work) -> Done:
        request = await work.request()
        await work.begin("worker-1")
        self.requests[work.job_id] = request
        prompt = str(request["prompt"])
        work.progress(self.at)
        try:
            await self._held(work)
            if prompt.startswith("hang"):
                await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.stopped.append(work.job_id)
            raise
        if prompt.startswith("fail:"):
            code, _, sentence = prompt.removeprefix("fail:").partition(":")
            raise WorkFailed(code, sentence)
        if prompt.startswith("lose:"):
            raise WorkerLost
        if prompt.startswith("spare:") and self.spared < 3:
            self.spared += 1
            raise WorkerLost(blamed=False)
        path = self._folder / f"{uuid4().hex}.mp4"
        path.write_bytes(self.clip)
        self.rendered.append(work.job_id)
        url = path.resolve().as_uri()
        output = {"video_url": url, "result": url, "cost": 0.5, "seed": 7, **self.more}
        return Done(output, {"denoise": 0.01})

    async def _held(self, work: Work) -> None:
        while self.preview is not None and not self._go.is_set():
            if work.wants_preview():
                work.preview(self.preview)
            await asyncio.sleep(0.05)
        await self._go.wait()


if __name__ == "__main__":
    serve(
        Settings.load(),
        "127.0.0.1",
        int(sys.argv[1]),
        lambda settings, metrics, on_fatal: InstantBackend(settings.output_dir),
    )
