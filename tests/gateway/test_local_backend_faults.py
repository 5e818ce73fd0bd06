"""The engine process when it dies, hangs, is paused or cannot start."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.gateway.conftest import eventually
from tests.gateway.engine_jobs import alive, opened, pid_of
from wan_engine.gateway.backends import own_engine
from wan_engine.gateway.backends.base import WorkerLost, WorkFailed


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
    monkeypatch.setattr("wan_engine.gateway.backends.own_engine._GRACE_SECONDS", 0.3)

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
    monkeypatch.setattr(own_engine, "LOAD_TIMES", 2)

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
