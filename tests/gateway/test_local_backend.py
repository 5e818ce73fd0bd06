"""The engine process and its jobs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.gateway.conftest import eventually
from tests.gateway.engine_jobs import opened, pid_of
from wan_engine.gateway.backends.base import Done, WorkFailed


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


def test_two_jobs_overlap_if_the_settings_say_so(tmp_path: Path) -> None:
    async def line() -> None:
        async with opened(tmp_path, prefetch=True) as asked:
            assert asked.backend.slots == 2
            await asyncio.gather(asked.run("sleep 0.1"), asked.run("sleep 0.1", "job-2"))

    asyncio.run(line())
