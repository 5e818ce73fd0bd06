"""Health, readiness and the metrics for Prometheus."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.conftest import Serve, Served, eventually, wish
from tests.gateway.jobs.test_jobs import ended, running_one, submitted
from wan_engine.gateway.doors.runpod import door as runpod_door
from wan_engine.gateway.readiness import Readiness
from wan_engine.settings import Settings

DOORS = (runpod_door.door,)

BASE = "/v2/wan-2-6-i2v"


async def numbers(served: Served) -> dict[tuple[str, ...], float]:
    """Each sample by its name and the values of its labels, sorted by label name."""
    text = (await served.http.get("/metrics")).text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_it_is_healthy_before_it_is_ready(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            ready = await served.http.get("/readyz")
            assert (ready.status_code, ready.json()) == (200, {"ready": True, "waiting_for": []})
            served.backend.why = "the engine is starting"
            ready = await served.http.get("/readyz")
            assert ready.status_code == 503
            assert ready.json() == {"ready": False, "waiting_for": ["the engine is starting"]}
            assert (await served.http.get("/healthz")).status_code == 200

    asyncio.run(line())


def test_metrics_follow_the_queue_the_stages_and_the_failures(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            await ended(served, await submitted(served))
            await ended(served, await submitted(served, "fail:encode_failed:no"))
            await submitted(served, request=wish(duration=7))
            served.backend.hold()
            running = await submitted(served)
            await eventually(lambda: running_one(served, running))
            waiting = await submitted(served)
            found = await numbers(served)
            assert found[("wan_queue_length",)] == 1
            assert found[("wan_jobs_running",)] == 1
            assert found[("wan_backend_ready",)] == 1
            assert found[("wan_jobs_accepted_total", "runpod")] == 5
            assert found[("wan_jobs_ended_total", "runpod", "completed")] == 1
            assert found[("wan_failures_total", "encode_failed", "runpod")] == 1
            assert found[("wan_failures_total", "invalid_request", "runpod")] == 1
            assert found[("wan_stage_seconds_count", "denoise")] == 1
            assert found[("wan_stage_seconds_sum", "denoise")] == 0.01
            assert found[("wan_stage_seconds_count", "waiting")] == 3
            await served.jobs.cancel(waiting)
            found = await numbers(served)
            assert found[("wan_queue_length",)] == 0
            assert found[("wan_jobs_ended_total", "runpod", "cancelled")] == 1

    asyncio.run(line())


def test_answers_are_counted_by_door_and_status_and_not_by_values_that_strangers_send(
    serve: Serve,
) -> None:
    async def line() -> None:
        async with serve() as served:
            await served.http.get(f"{BASE}/health")
            await served.http.get(f"{BASE}/status/nope")
            await served.http.request("BREW", f"{BASE}/health")
            found = await numbers(served)
            assert found[("wan_answer_seconds_count", "runpod", "GET", "200")] == 1
            assert found[("wan_answer_seconds_count", "runpod", "GET", "404")] == 1
            assert found[("wan_answer_seconds_count", "runpod", "other", "405")] == 1

    asyncio.run(line())


def test_it_is_not_ready_without_room_for_a_jobs_files(serve: Serve) -> None:
    async def line() -> None:
        async with serve(scratch_min_gb=1e9) as served:
            lacking = served.gateway.readiness.lacking
            await eventually(lambda: lacking() == ["there is no room for a job's files"])
            ready = await served.http.get("/readyz")
            assert (ready.status_code, ready.json()["waiting_for"]) == (503, lacking())

    asyncio.run(line())


def test_it_is_not_ready_while_no_clip_can_be_stored_and_ready_again_afterwards(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wan_engine.gateway.readiness._DISK_SECONDS", 0.05)
    in_the_way = tmp_path / "outputs" / ".jobs"
    in_the_way.parent.mkdir()
    in_the_way.write_text("no folder")

    async def line() -> None:
        async with serve() as served:
            lacking = served.gateway.readiness.lacking
            await eventually(lambda: lacking() == ["clips cannot be stored"])
            assert (await served.http.get("/readyz")).status_code == 503
            in_the_way.unlink()
            await eventually(lambda: lacking() == [])
            assert (await served.http.get("/readyz")).status_code == 200

    asyncio.run(line())


def test_a_failed_check_stays_failed_while_it_runs_again(tmp_path: Path) -> None:
    readiness = Readiness(Settings(output_dir=tmp_path, scratch_min_gb=1e9), here=True)
    [disk, _] = readiness._looks
    seen: list[list[str]] = []
    check = disk.check

    def look() -> object:
        seen.append(readiness.lacking())
        return check()

    disk.check = look

    async def line() -> None:
        for _ in range(2):
            await readiness._look(disk)

    asyncio.run(line())
    assert seen == [[], ["there is no room for a job's files"]]


def test_a_bucket_that_hangs_does_not_delay_the_check_of_the_disk(tmp_path: Path) -> None:
    readiness = Readiness(Settings(output_dir=tmp_path, scratch_min_gb=1e9), here=True)
    [disk, storage] = readiness._looks
    hanging, over = threading.Event(), threading.Event()

    def hang() -> None:
        hanging.set()
        over.wait(30)

    storage.check = hang
    readiness._looks.reverse()  # whichever starts first

    async def line() -> None:
        watch = asyncio.create_task(readiness.watch())
        try:
            await eventually(hanging.is_set)
            await eventually(lambda: disk.failing)
        finally:
            over.set()
            watch.cancel()

    asyncio.run(line())
