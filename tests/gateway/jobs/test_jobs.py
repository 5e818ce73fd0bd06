"""The state machine of jobs, with a real database and the instant backend."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from tests.gateway.conftest import Serve, Served, eventually, wish
from wan_engine.errors import InvalidRequest
from wan_engine.gateway.doors.runpod import door as runpod_door
from wan_engine.gateway.job import Job, NewJob, now_ms
from wan_engine.gateway.jobs.sweep import forget
from wan_engine.gateway.refusals import Refusal
from wan_engine.schema import VideoRequest

DOORS = (runpod_door.door,)

WAIT_SECONDS = 10


def new(prompt: str = "Leaves sway", owner: str = "ann", **fields: Any) -> NewJob:
    values: dict[str, Any] = {
        "id": str(uuid4()),
        "door": "runpod",
        "model": "wan-2-6-i2v",
        "request": wish(prompt=prompt),
        "base_url": "http://127.0.0.1",
    }
    return NewJob(owner=owner, **{**values, **fields})


async def submitted(served: Served, *args: Any, **fields: Any) -> Job:
    (job,) = await served.jobs.submit(new(*args, **fields))
    return job


async def ended(served: Served, job: Job) -> Job:
    job = await served.jobs.wait(job, WAIT_SECONDS)
    assert job.final, job
    return job


HUGE = "data:image/png;base64," + "A" * 1_000_000


@pytest.mark.parametrize("webhook", [None, "http://127.0.0.1:9/hook"])
@pytest.mark.parametrize("ending", ["completed", "cancelled"])
def test_a_picture_is_deleted_once_nobody_can_need_it(
    serve: Serve, tmp_path: Path, ending: str, webhook: str | None
) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            request = wish(image=HUGE)
            job = await submitted(served, request=request, webhook=webhook)
            assert await served.jobs.request(job.id) == request
            if ending == "cancelled":
                await served.jobs.cancel(job)
            served.backend.release()
            assert (await ended(served, job)).state == ending
            # With a webhook it is kept until the webhook was delivered or given up.
            for _ in range(400):
                if await served.jobs.whole_request(job.id) is None:
                    break
                await asyncio.sleep(0.01)
            kept = await served.jobs.request(job.id)
            assert kept["prompt"] == request["prompt"] and len(kept["image"]) < 100
            await served.gateway.requests.remove_unused()
            assert list((tmp_path / "outputs/gateway.db.media").iterdir()) == []

    asyncio.run(line())


def test_a_job_that_can_be_retried_keeps_its_picture(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            request = wish(prompt="fail:internal_error:no", image=HUGE)
            job = await ended(served, await submitted(served, request=request))
            assert (job.state, await served.jobs.request(job.id)) == ("failed", request)

    asyncio.run(line())


def test_an_invalid_request_is_kept_as_well(serve: Serve) -> None:
    """Its webhook then has all of it, and a retry fails in the same way."""

    async def line() -> None:
        async with serve() as served:
            request = wish(image=HUGE, duration=7, junk="x" * 10**6)
            job = await submitted(served, request=request)
            assert job.state == "failed"
            assert await served.jobs.whole_request(job.id) == request
            with pytest.raises(InvalidRequest) as raised:
                VideoRequest.parse(request)
            assert str(raised.value) == job.error

    asyncio.run(line())


def test_concurrent_retries_do_not_exceed_the_limit_of_the_queue(serve: Serve) -> None:
    async def line() -> None:
        async with serve(queue_max=2) as served:
            failed = [
                await ended(served, await submitted(served, "fail:internal_error:no"))
                for _ in range(6)
            ]
            served.backend.hold()
            await submitted(served)
            await eventually(lambda: not served.jobs._queue)
            again = [served.jobs.retry(job) for job in failed]
            retried = await asyncio.gather(*again, return_exceptions=True)
            refused = [one for one in retried if isinstance(one, Refusal)]
            assert [refusal.code for refusal in refused] == ["queue_full"] * 4
            assert len(served.jobs._queue) == 2

    asyncio.run(line())


def test_a_clip_that_cannot_be_removed_does_not_end_the_cleanup(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            job = await ended(served, await submitted(served))
            clip = Path(urlsplit(str((job.result or {})["video_url"])).path)
            clip.unlink()
            clip.mkdir()  # like a file in a read-only folder, it cannot be removed
            store, links = served.gateway.store, served.gateway.context.links
            assert await forget(served.jobs, store, links, now_ms() + 1000) == 1

    asyncio.run(line())


def test_nul_is_removed_from_a_sentence_because_postgres_accepts_none(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            job = await ended(served, await submitted(served, "fail:disk_full:no\0room"))
            stored = await served.gateway.store.find(job.id)
            assert stored is not None and stored.error == "no\ufffdroom"

    asyncio.run(line())


def test_a_job_is_queued_then_runs_and_completes(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            job = await submitted(served)
            assert (job.state, job.started_ms) == ("queued", None)
            running = await eventually(lambda: running_one(served, job))
            assert running.worker == "worker-1"
            await eventually(lambda: served.jobs._now(job).progress)
            served.backend.release()
            done = await ended(served, job)
            assert done.state == "completed" and done.result is not None
            assert done.created_ms <= (done.started_ms or 0) <= (done.finished_ms or 0)
            assert done.progress is None and done.error is None

    asyncio.run(line())


def running_one(served: Served, job: Job) -> Job | None:
    now = served.jobs._now(job)
    return now if now.state == "running" else None


def test_an_invalid_request_fails_before_it_reaches_the_backend(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            job = await submitted(served, request=wish(duration=7))
            assert job.state == "failed" and job.callers_fault
            assert job.error == 'field "duration" must be one of [5, 10, 15], got number 7'
            assert served.backend.requests == {}
            again = await served.jobs.find("runpod", "ann", job.id)
            assert again == job

    asyncio.run(line())


@pytest.mark.parametrize("code", ["content_policy", "out_of_memory"])
def test_a_failure_keeps_its_class_and_sentence(serve: Serve, code: str) -> None:
    async def line() -> None:
        async with serve() as served:
            job = await ended(served, await submitted(served, f"fail:{code}:It went wrong"))
            assert (job.state, job.error_code, job.error) == ("failed", code, "It went wrong")
            assert job.callers_fault == (code == "content_policy")

    asyncio.run(line())


def test_a_waiting_job_is_cancelled_without_being_started(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            first, second = await submitted(served), await submitted(served)
            assert (await served.jobs.cancel(second)).state == "cancelled"
            served.backend.release()
            assert (await ended(served, first)).state == "completed"
            await asyncio.sleep(0.05)
            assert served.backend.rendered == [first.id]

    asyncio.run(line())


def test_a_running_job_is_cancelled_at_once_and_its_work_is_stopped(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            job = await submitted(served, "hang")
            await eventually(lambda: running_one(served, job))
            assert (await served.jobs.cancel(job)).state == "cancelled"
            await eventually(lambda: served.backend.stopped == [job.id])
            after = await ended(served, await submitted(served))
            assert after.state == "completed"  # its slot is free again

    asyncio.run(line())


def test_an_ended_job_never_changes(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            done = await ended(served, await submitted(served))
            assert await served.jobs.cancel(done) == done
            assert await served.jobs.fail(done, "internal_error", "too late") == done
            with pytest.raises(Refusal) as raised:
                await served.jobs.retry(done)
            assert raised.value.code == "conflict"

    asyncio.run(line())


def test_a_failed_job_can_be_retried_and_starts_again(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            failed = await ended(served, await submitted(served, "fail:encode_failed:no"))
            served.backend.hold()
            again = await served.jobs.retry(failed)
            assert (again.state, again.error, again.finished_ms) == ("queued", None, None)
            assert (again.retries, again.created_ms) == (1, failed.created_ms)
            assert again.queued_ms >= failed.queued_ms
            served.backend.release()
            assert (await ended(served, again)).state == "failed"
            counts, retried = await served.jobs.counts("runpod")
            assert (counts, retried) == ({"failed": 1}, 1)

    asyncio.run(line())


def test_a_waiting_job_ends_when_its_time_is_over(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            first = await submitted(served)
            late = await ended(served, await submitted(served, ttl_seconds=0.05))
            assert (late.state, late.error_code) == ("expired", "deadline_exceeded")
            served.backend.release()
            assert (await ended(served, first)).state == "completed"
            assert served.backend.rendered == [first.id]

    asyncio.run(line())


def test_a_running_job_is_stopped_when_its_time_is_over(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            late = await ended(served, await submitted(served, "hang", ttl_seconds=0.2))
            assert late.state == "expired" and late.started_ms is not None
            await eventually(lambda: served.backend.stopped == [late.id])

    asyncio.run(line())


def test_the_queue_is_bounded_and_a_group_is_accepted_whole_or_not_at_all(serve: Serve) -> None:
    async def line() -> None:
        async with serve(queue_max=3) as served:
            served.backend.hold()
            running = await submitted(served)
            await eventually(lambda: running_one(served, running))
            await served.jobs.submit(new(), new())
            with pytest.raises(Refusal) as raised:
                await served.jobs.submit(new(), new())
            assert raised.value.code == "queue_full"
            assert (raised.value.retry_after_seconds or 0) >= 1
            assert (await served.jobs.counts())[0] == {"running": 1, "queued": 2}
            await submitted(served)  # one more fits

    asyncio.run(line())


def test_an_invalid_request_takes_no_place_in_the_queue(serve: Serve) -> None:
    async def line() -> None:
        async with serve(queue_max=1) as served:
            served.backend.hold()
            running = await submitted(served)
            await eventually(lambda: running_one(served, running))
            await submitted(served)
            assert (await submitted(served, request={})).state == "failed"

    asyncio.run(line())


def test_concurrent_submits_do_not_exceed_the_limit(serve: Serve) -> None:
    async def line() -> None:
        async with serve(queue_max=5) as served:
            served.backend.hold()
            first = await submitted(served)
            await eventually(lambda: running_one(served, first))
            told = await asyncio.gather(
                *(submitted(served) for _ in range(20)), return_exceptions=True
            )
            assert sum(isinstance(one, Job) for one in told) == 5
            assert sum(isinstance(one, Refusal) for one in told) == 15

    asyncio.run(line())


def test_callers_do_not_see_the_jobs_of_others(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            job = await submitted(served, owner="ann")
            assert await served.jobs.find("runpod", "ann", job.id)
            assert await served.jobs.find("runpod", "bob", job.id) is None
            assert await served.jobs.find("oxen", "ann", job.id) is None
            assert await anext(served.jobs.of_owner("runpod", "bob")) == []

    asyncio.run(line())


@pytest.mark.parametrize("job_id", ["", "x" * 65, "ä", "\0", "no such job", "'; drop table jobs"])
def test_an_id_without_a_job_is_not_found(serve: Serve, job_id: str) -> None:
    async def line() -> None:
        async with serve() as served:
            assert await served.jobs.find("runpod", "ann", job_id) is None

    asyncio.run(line())


def test_waiting_ends_when_its_time_is_over_or_the_gateway_ends(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            job = await submitted(served)
            assert not (await served.jobs.wait(job, 0.02)).final
            waiting = asyncio.create_task(served.jobs.wait(job, 60))
            await asyncio.sleep(0.02)
            served.jobs.close()
            assert not (await asyncio.wait_for(waiting, 1)).final

    asyncio.run(line())


# --- events --------------------------------------------------------------------------------------


def test_a_subscriber_receives_its_own_jobs_including_those_of_the_last_minute(
    serve: Serve,
) -> None:
    async def line() -> None:
        async with serve() as served:
            before = await ended(served, await submitted(served))
            await ended(served, await submitted(served, owner="bob"))
            events = served.jobs.events("ann")
            assert await anext(events) == before
            job = await submitted(served)
            states = [(await anext(events)).state for _ in range(3)]
            assert states == ["queued", "running", "completed"]
            served.jobs.close()
            assert [told async for told in events] == []
            assert job.owner == "ann"

    asyncio.run(line())


def test_a_subscriber_that_does_not_read_is_dropped(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            failed = await submitted(served, request={})
            events = served.jobs.events("ann")
            assert await anext(events) == failed
            for _ in range(1100):
                served.jobs._events.tell(failed)
            assert len([told async for told in events]) < 1000

    asyncio.run(line())


# --- restarts ------------------------------------------------------------------------------------


def test_jobs_of_a_gateway_that_ended_continue_in_the_next(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            done = await ended(served, await submitted(served))
            served.backend.hold()
            running = await submitted(served, "hang")
            await eventually(lambda: running_one(served, running))
            waiting = await submitted(served)
        async with serve() as served:
            assert await served.jobs.find("runpod", "ann", done.id) == done
            assert await anext(served.jobs.events("ann")) == done
            again = await eventually(lambda: running_one(served, running))
            assert again.workers_lost == 0  # the end of the gateway was not the job's fault
            await served.jobs.cancel(again)
            assert (await ended(served, waiting)).state == "completed"

    asyncio.run(line())


def test_a_job_that_kills_its_workers_is_not_run_for_ever(serve: Serve) -> None:
    async def line() -> None:
        async with serve(job_starts=2) as served:
            job = await ended(served, await submitted(served, "lose:"))
            assert (job.state, job.error_code) == ("failed", "job_refused")
            assert job.error == "The job crashed its worker 2 times and is not tried again"
            assert (await ended(served, await submitted(served))).state == "completed"

    asyncio.run(line())


def test_a_job_whose_worker_ends_because_of_another_job_is_not_blamed(serve: Serve) -> None:
    async def line() -> None:
        async with serve(job_starts=1) as served:
            job = await ended(served, await submitted(served, "spare:"))
            assert (job.state, job.workers_lost, served.backend.spared) == ("completed", 0, 3)

    asyncio.run(line())


def test_old_jobs_are_deleted_with_their_clips(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            old = await ended(served, await submitted(served))
            links, store = served.gateway.context.links, served.gateway.store
            path = links._path(old.result["video_url"])  # type: ignore[index]
            assert path is not None and path.is_file()
            assert await forget(served.jobs, store, links, (old.finished_ms or 0)) == 0
            served.backend.hold()
            waiting = await submitted(served)
            assert await forget(served.jobs, store, links, now_ms() + 1000) == 1
            assert await served.jobs.find("runpod", "ann", old.id) is None
            assert await served.jobs.request(old.id) == {}
            assert not path.exists()
            assert await served.jobs.find("runpod", "ann", waiting.id)

    asyncio.run(line())
