"""The engine process: real processes and pipes, with an engine that renders nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.conftest import PICTURE, eventually
from wan_engine.control import Preview, Progress
from wan_engine.gateway.backends import local
from wan_engine.gateway.backends.base import Done, Work, WorkerLost, WorkFailed
from wan_engine.gateway.backends.local import LocalBackend
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


def test_a_clip_is_rendered_with_progress(tmp_path: Path) -> None:
    async def line() -> None:
        async with opened(tmp_path) as asked:
            done: Done = await asked.run("sleep 1")
            assert asked.begun_count == 1
            assert done.output["cost"] == 0.5 and done.output["seed"] == 7
            assert done.output["video_url"].startswith("file://")
            assert done.stage_seconds["denoise"] > 0.5
            steps = [told.step for told in asked.progress]
            assert len(steps) >= 3 and steps == sorted(steps)
            assert asked.backend.waiting_for() is None

    asyncio.run(line())


@pytest.mark.parametrize("previews", ["auto", "off"])
def test_previews_are_made_once_someone_looks(tmp_path: Path, previews: str) -> None:
    async def line() -> None:
        async with opened(tmp_path, previews=previews) as asked:
            await asked.run("sleep 1")
            assert asked.previews == []
            asked.looks = True
            await asked.run("sleep 5", "job-2")
            assert bool(asked.previews) == (previews == "auto")
            steps = [preview.step for preview in asked.previews]
            assert steps == sorted(set(steps))

    asyncio.run(line())


def test_a_clip_stored_before_is_not_rendered_again(tmp_path: Path) -> None:
    async def line() -> None:
        async with opened(tmp_path) as asked:
            first = await asked.run("sleep 0")
            again = await asked.run("sleep 0")
            assert again.output == first.output
        renders = (tmp_path / "outputs" / "renders.log").read_text().split()
        assert renders == ["job-1"]

    asyncio.run(line())


@pytest.mark.parametrize(
    ("prompt", "code", "sentence"),
    [
        ("fail", "content_policy", "Content policy: prompt was flagged"),
        ("raise", "internal_error", "Internal error, reference"),
    ],
)
def test_a_failure_has_its_code_and_no_secret(
    tmp_path: Path, prompt: str, code: str, sentence: str
) -> None:
    async def line() -> None:
        async with opened(tmp_path) as asked:
            with pytest.raises(WorkFailed) as raised:
                await asked.run(prompt)
            assert raised.value.code == code and raised.value.sentence.startswith(sentence)
            assert "passwd" not in raised.value.sentence
            assert await asked.run("sleep 0", "job-2")

    asyncio.run(line())


def test_a_deadline_ends_a_job(tmp_path: Path) -> None:
    async def line() -> None:
        async with opened(tmp_path) as asked:
            with pytest.raises(WorkFailed) as raised:
                await asked.run("sleep 20", seconds=0.3)
            assert raised.value.code == "deadline_exceeded"

    asyncio.run(line())


def test_a_cancelled_job_ends_when_its_run_ends(tmp_path: Path) -> None:
    async def line() -> None:
        async with opened(tmp_path) as asked:
            run = asyncio.create_task(asked.run("sleep 5"))
            await eventually(lambda: asked.progress)
            pid = pid_of(asked)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(run, 5)
            assert await asked.run("sleep 0", "job-2")
            assert pid_of(asked) == pid  # the model stays loaded
        assert "job-1" not in (tmp_path / "outputs" / "renders.log").read_text()

    asyncio.run(line())


def test_a_clip_stored_while_its_job_is_cancelled_is_removed(tmp_path: Path) -> None:
    async def line() -> None:
        async with opened(tmp_path) as asked:
            run = asyncio.create_task(asked.run("late"))
            await eventually(lambda: asked.progress)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(run, 10)
        outputs = tmp_path / "outputs"
        assert (outputs / "renders.log").read_text().split() == ["job-1"]
        assert not [*outputs.glob("*.mp4"), *(outputs / ".jobs").iterdir()]

    asyncio.run(line())


def test_a_job_cancelled_before_the_engine_has_it_costs_neither_time_nor_the_engine(
    tmp_path: Path,
) -> None:
    """A job cancelled right after it was accepted: its `begin` waits for the database."""

    async def line() -> None:
        async with opened(tmp_path) as asked:
            assert await asked.run("sleep 0", "job-1")
            pid = pid_of(asked)
            asked.begins.clear()
            run = asyncio.create_task(asked.run("sleep 0", "job-2"))
            await eventually(lambda: asked.begun_count == 2)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(run, 5)
            asked.begins.set()
            assert await asked.run("sleep 0", "job-3")
            assert pid_of(asked) == pid
        assert "job-2" not in (tmp_path / "outputs" / "renders.log").read_text()

    asyncio.run(line())


@pytest.mark.parametrize("why", ["killed", "killed by its job"])
def test_an_engine_that_dies_loses_its_job_and_is_restarted(tmp_path: Path, why: str) -> None:
    async def line() -> None:
        async with opened(tmp_path) as asked:
            run = asyncio.create_task(asked.run("die" if why != "killed" else "sleep 30"))
            if why == "killed":
                await eventually(lambda: asked.progress)
                os.kill(pid_of(asked), signal.SIGKILL)
            with pytest.raises(WorkerLost):
                await run
            assert await asked.run("sleep 0", "job-2")

    asyncio.run(line())


def test_an_engine_that_does_not_stop_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wan_engine.gateway.backends.local._GRACE_SECONDS", 0.3)

    async def line() -> None:
        async with opened(tmp_path) as asked:
            with pytest.raises(WorkFailed):
                await asked.run("deaf", seconds=0.1)
            run = asyncio.create_task(asked.run("deaf", "job-2"))
            await eventually(lambda: "job-2" in asked.backend._works)
            await asyncio.sleep(0.2)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            assert await asked.run("sleep 0", "job-3")

    asyncio.run(line())


def test_an_engine_that_can_never_start_says_why(tmp_path: Path) -> None:
    async def line() -> None:
        fatal: list[str] = []
        async with opened(tmp_path, fatal.append, model="missing") as asked:
            await eventually(lambda: fatal)
            assert fatal == ["There is no model here"]
            assert asked.backend.waiting_for() is not None

    asyncio.run(line())


def test_the_process_ends_with_its_pipe_even_during_a_job(tmp_path: Path) -> None:
    async def line() -> None:
        async with opened(tmp_path) as asked:
            run = asyncio.create_task(asked.run("deaf"))
            await eventually(lambda: asked.begun_count)
            pid = pid_of(asked)
        with pytest.raises(WorkerLost):
            await run
        assert not alive(pid)

    asyncio.run(line())


def test_two_jobs_overlap_if_the_settings_say_so(tmp_path: Path) -> None:
    async def line() -> None:
        async with opened(tmp_path, prefetch=True) as asked:
            assert asked.backend.slots == 2
            await asyncio.gather(asked.run("sleep 0.1"), asked.run("sleep 0.1", "job-2"))

    asyncio.run(line())


# --- hangs ---------------------------------------------------------------------------------------

HANG_SECONDS = 3.0  # longer than a busy machine delays a process


def test_a_job_that_hangs_loses_its_engine_and_the_waiting_one_is_not_blamed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def line() -> None:
        async with opened(tmp_path, hang_seconds=HANG_SECONDS, prefetch=True) as asked:
            hangs = asyncio.create_task(asked.run("hang"))
            waits = asyncio.create_task(asked.run("wait", "job-2"))
            with pytest.raises(WorkerLost) as lost:
                await asyncio.wait_for(hangs, 60)
            assert lost.value.blamed
            with pytest.raises(WorkerLost) as lost:
                await waits
            assert not lost.value.blamed
            assert asked.backend.waiting_for() is not None
            assert await asked.run("sleep 0", "job-3")
        assert "the engine hangs in denoise, with job-1" in caplog.text

    asyncio.run(line())


@pytest.mark.parametrize("busy", [True, False], ids=["with a job", "idle"])
def test_a_paused_engine_is_not_ready_and_is_killed(tmp_path: Path, busy: bool) -> None:
    async def line() -> None:
        async with opened(tmp_path, hang_seconds=HANG_SECONDS) as asked:
            await eventually(lambda: asked.backend.waiting_for() is None, 30)
            run = asyncio.create_task(asked.run("sleep 30")) if busy else None
            if busy:
                await eventually(lambda: asked.progress)
            pid = pid_of(asked)
            os.kill(pid, signal.SIGSTOP)
            why = await eventually(asked.backend.waiting_for, 30)
            assert why.startswith("the engine has said nothing for ") and alive(pid)
            if run is not None:
                with pytest.raises(WorkerLost):
                    await asyncio.wait_for(run, 30)
            await eventually(lambda: asked.backend.waiting_for() is None, 30)
            assert not alive(pid) and await asked.run("sleep 0", "job-2")

    asyncio.run(line())


@pytest.mark.parametrize("stopped", [False, True], ids=["it hangs", "it is stopped"])
def test_an_engine_whose_start_hangs_is_restarted(
    tmp_path: Path, stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LOAD_TIMES", 2)

    async def line() -> None:
        async with opened(tmp_path, hang_seconds=1, model="slow") as asked:
            await eventually((tmp_path / "outputs" / "started").exists, 30)
            pid = pid_of(asked)
            if stopped:
                os.kill(pid, signal.SIGSTOP)
            await eventually(lambda: asked.backend.waiting_for() is None, 60)
            assert not alive(pid)

    asyncio.run(line())


def test_an_engine_with_a_broken_device_fails_its_job_alone_and_is_restarted(
    tmp_path: Path,
) -> None:
    async def line() -> None:
        async with opened(tmp_path, prefetch=True) as asked:
            waits = asyncio.create_task(asked.run("wait", "job-2"))
            await eventually(lambda: asked.progress, 30)
            pid = pid_of(asked)
            with pytest.raises(WorkFailed) as failed:
                await asked.run("break")
            assert failed.value.sentence.startswith("Internal error, reference ")
            assert asked.backend.waiting_for() is not None
            with pytest.raises(WorkerLost) as lost:
                await waits
            assert not lost.value.blamed
            assert await asked.run("sleep 0", "job-3")
            assert not alive(pid)

    asyncio.run(line())
