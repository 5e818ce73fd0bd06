"""Runpod's endpoint API over HTTP, as its pages describe it and its SDKs use it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

import pytest

from tests.gateway.conftest import Serve, Served, Shared, eventually, wish
from wan_engine.gateway.doors.runpod import door as runpod_door
from wan_engine.gateway.jobs.service import Jobs

DOORS = (runpod_door.door,)

BASE = "/v2/wan-2-6-i2v"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


async def post(served: Served, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    content = None if body is None else json.dumps(body).encode()
    answer = await served.http.post(BASE + path, content=content)
    return answer.status_code, answer.json()


async def get(served: Served, path: str) -> tuple[int, dict[str, Any]]:
    answer = await served.http.get(BASE + path)
    return answer.status_code, answer.json()


async def queued(served: Served, prompt: str = "Leaves sway", **more: Any) -> str:
    status, body = await post(served, "/run", {"input": wish(prompt=prompt), **more})
    assert status == 200, body
    return str(body["id"])


async def status_of(served: Served, job_id: str, *states: str) -> dict[str, Any]:
    """The answer to `status` once it says one of `states`."""
    for _ in range(1000):
        code, body = await get(served, f"/status/{job_id}")
        assert code == 200
        if body["status"] in states:
            return body
        await asyncio.sleep(0.005)
    raise AssertionError(body)


# --- life cycle of a job -------------------------------------------------------------------------


def test_run_answers_at_once_and_status_has_the_rest(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            status, body = await post(served, "/run", {"input": wish()})
            assert (status, set(body)) == (200, {"id", "status"})
            assert re.fullmatch(f"{UUID}-u1", body["id"]) and body["status"] == "IN_QUEUE"
            running = await status_of(served, body["id"], "IN_PROGRESS")
            while "output" not in running:  # it has begun, and has not reported progress
                running = await status_of(served, body["id"], "IN_PROGRESS")
            assert running["workerId"] == "worker-1"
            assert running["output"] == {"stage": "denoise", "step": 1, "steps": 4}
            served.backend.release()
            done = await status_of(served, body["id"], "COMPLETED")
            assert list(done) == sorted(done)
            assert set(done) == {"delayTime", "executionTime", "id", "output", "status", "workerId"}
            assert all(type(done[key]) is int for key in ("delayTime", "executionTime"))
            assert done["output"]["video_url"] == done["output"]["result"]
            assert done["output"]["cost"] == 0.5
            posted = await served.http.post(f"{BASE}/status/{body['id']}")
            assert posted.json() == done

    asyncio.run(line())


def test_runsync_answers_with_the_result(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            status, body = await post(served, "/runsync", {"input": wish()})
            assert (status, body["status"]) == (200, "COMPLETED")
            assert re.fullmatch(f"sync-{UUID}-u1", body["id"])
            clip = await served.http.get(body["output"]["video_url"])
            assert clip.status_code == 200 and clip.headers["content-type"] == "video/mp4"

    asyncio.run(line())


def test_runsync_that_waits_too_long_answers_with_the_id(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            begun = time.monotonic()
            status, body = await post(served, "/runsync?wait=1000", {"input": wish()})
            assert 0.9 < time.monotonic() - begun < 60  # not the default of 300 s
            assert (status, body["status"]) == (200, "IN_PROGRESS")
            held = asyncio.create_task(get(served, f"/status-sync/{body['id']}?wait=5000"))
            await asyncio.sleep(0.02)
            assert not held.done()
            served.backend.release()
            assert (await held)[1]["status"] == "COMPLETED"

    asyncio.run(line())


def test_lora_names_reach_the_engine_and_a_path_is_refused_at_once(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            loras = [{"name": "people/anna", "scale": 0.5, "expert": "low"}, "style"]
            status, body = await post(served, "/runsync", {"input": wish(loras=loras)})
            assert (status, body["status"]) == (200, "COMPLETED")
            assert served.backend.requests[body["id"]]["loras"] == loras
            _, body = await post(served, "/runsync", {"input": wish(loras=["../anna"])})
            assert body["status"] == "FAILED"
            assert body["error"].startswith('field "loras[0]" must be a name without its folder')

    asyncio.run(line())


@pytest.mark.parametrize("wait", ["soon", "-1", "1.5", "", "9" * 40])
def test_a_wait_that_is_not_a_number_is_refused(shared: Shared, wait: str) -> None:
    async def line() -> None:
        served = shared.served
        status, body = await post(served, f"/runsync?wait={wait}", {"input": wish()})
        assert status == 400 and '"wait"' in body["error"]
        assert (await served.jobs.counts())[0] == {}

    shared.run(line())


@pytest.mark.parametrize(
    ("code", "http"),
    [
        ("invalid_media", 400),
        ("content_policy", 400),
        ("time_limit_too_short", 400),
        ("encode_failed", 200),
    ],
)
def test_a_callers_fault_is_400_on_runsync_and_200_on_status(
    serve: Serve, code: str, http: int
) -> None:
    async def line() -> None:
        async with serve() as served:
            wished = wish(prompt=f"fail:{code}:Invalid image URL")
            status, body = await post(served, "/runsync", {"input": wished})
            assert (status, body["status"], body["error"]) == (http, "FAILED", "Invalid image URL")
            assert (await get(served, f"/status/{body['id']}")) == (200, body)
            assert set(body) >= {"id", "status", "error", "delayTime", "executionTime"}

    asyncio.run(line())


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"duration": 7}, 'field "duration" must be one of [5, 10, 15], got number 7'),
        ({"prompt": "  "}, "prompt"),
        ({"prompt": None}, 'field "prompt" is required'),
        ({"image": None}, 'field "image" is required'),
        ({"size": "640*480"}, 'field "size" must be one of ["1280*720", "1920*1080"]'),
        ({"image": "\ud800"}, "Invalid image URL"),
        ({"size": "\ud800"}, 'field "size"'),
        ({"image": "file:///etc/passwd"}, "Invalid image URL"),
    ],
)
def test_an_invalid_field_fails_at_once_even_behind_a_full_queue(
    serve: Serve, fields: dict[str, Any], sentence: str
) -> None:
    async def line() -> None:
        async with serve(queue_max=1) as served:
            served.backend.hold()
            first = await queued(served)
            await status_of(served, first, "IN_PROGRESS")
            await queued(served)
            status, body = await post(served, "/runsync", {"input": wish(**fields)})
            assert (status, body["status"]) == (400, "FAILED") and sentence in body["error"]
            status, body = await post(served, "/run", {"input": wish(**fields)})
            assert (status, body["status"]) == (200, "IN_QUEUE")
            assert sentence in (await status_of(served, body["id"], "FAILED"))["error"]
            assert first not in served.backend.rendered

    asyncio.run(line())


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"input": NaN}', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 9_000, "not valid JSON"),
        (b"[" * 100_000, "too many values"),
        (b"[]", "must be a JSON object"),
        (b"{}", 'field "input" is required'),
        (b'{"input": null}', 'field "input" is required'),
        (b'{"input": [1]}', 'field "input" must be an object'),
        (b'{"input": {}, "policy": []}', "policy"),
        (b'{"input": {}, "policy": {"ttl": 9999}}', "policy.ttl"),
        (b'{"input": {}, "policy": {"ttl": true}}', "policy.ttl"),
        (b'{"input": {}, "policy": {"executionTimeout": "5000"}}', "policy.executionTimeout"),
        (b'{"input": {}, "webhook": "ftp://example.com"}', "webhook"),
        (b'{"input": {}, "webhook": "http://[::1"}', "webhook"),
        (b'{"input": {}, "webhook": "http://a\\u0000b"}', "webhook"),
        (b'{"input": {}, "webhook": "http://a/\\r\\nX: y"}', "webhook"),
        (b'{"input": {"seed": 1e999}}', "not valid JSON"),
        (b'{"input": {}, "webhook": 1}', "webhook"),
    ],
)
@pytest.mark.parametrize("path", ["/run", "/runsync"])
def test_a_body_that_is_not_a_request_is_refused_in_one_sentence(
    shared: Shared, path: str, body: bytes, sentence: str
) -> None:
    async def line() -> None:
        served = shared.served
        answer = await served.http.post(BASE + path, content=body)
        assert answer.status_code == 400 and sentence in answer.json()["error"]
        assert answer.json()["status"] == "FAILED"
        prefix = {"/run": "", "/runsync": "sync-"}[path]
        assert re.fullmatch(f"{prefix}{UUID}-u1", answer.json()["id"])
        assert list(answer.json()) == sorted(answer.json())

    shared.run(line())


# --- operations on a job -------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{}", b"not json"])
def test_cancel_takes_any_body_and_ends_a_running_job(serve: Serve, content: bytes) -> None:
    async def line() -> None:
        async with serve() as served:
            job_id = await queued(served, "hang")
            await status_of(served, job_id, "IN_PROGRESS")
            answer = await served.http.post(
                f"{BASE}/cancel/{job_id}",
                content=content,
                headers={"Content-Type": "application/json"},
            )
            assert answer.json() == {"id": job_id, "status": "CANCELLED"}
            assert (await get(served, f"/status/{job_id}"))[1]["status"] == "CANCELLED"
            await eventually(lambda: served.backend.stopped == [job_id])

    asyncio.run(line())


def test_cancel_of_a_finished_job_changes_nothing(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            _, done = await post(served, "/runsync", {"input": wish()})
            _, body = await post(served, f"/cancel/{done['id']}")
            assert body == {"id": done["id"], "status": "COMPLETED"}
            assert (await get(served, f"/status/{done['id']}"))[1] == done

    asyncio.run(line())


def test_stream_gives_the_output_once_and_then_only_the_end(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            job_id = await queued(served)
            _, body = await get(served, f"/stream/{job_id}")
            assert body["stream"] == [] and body["status"] in ("IN_QUEUE", "IN_PROGRESS")
            served.backend.release()
            done = await status_of(served, job_id, "COMPLETED")
            _, body = await get(served, f"/stream/{job_id}")
            assert body == {"status": "COMPLETED", "stream": [{"output": done["output"]}]}
            _, body = await get(served, f"/stream/{job_id}")
            assert body == {"status": "COMPLETED", "stream": []}

    asyncio.run(line())


@pytest.mark.parametrize("wrong", [{"image": 5}, {"prompt": None}, {"duration": 7}])
def test_no_retry_renders_an_invalid_request(serve: Serve, wrong: dict[str, Any]) -> None:
    async def line() -> None:
        async with serve() as served:
            _, failed = await post(served, "/runsync", {"input": wish(**wrong)})
            assert (await post(served, f"/retry/{failed['id']}"))[0] == 200
            again = (await served.http.get(f"{BASE}/status-sync/{failed['id']}")).json()
            assert (again["status"], again["error"]) == ("FAILED", failed["error"])
            assert not served.backend.rendered and not served.backend.requests

    asyncio.run(line())


def test_retry_queues_a_failed_job_again_and_no_other(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            wished = {"input": wish(prompt="fail:encode_failed:no")}
            _, failed = await post(served, "/runsync", wished)
            status, body = await post(served, f"/retry/{failed['id']}")
            assert (status, body) == (200, {"id": failed["id"], "status": "IN_QUEUE"})
            await status_of(served, failed["id"], "FAILED")
            _, done = await post(served, "/runsync", {"input": wish()})
            status, body = await post(served, f"/retry/{done['id']}")
            assert status == 400 and "retried" in body["error"]

    asyncio.run(line())


def test_purge_queue_removes_waiting_jobs_and_leaves_running_ones(serve: Serve) -> None:
    async def line() -> None:
        async with serve(endpoints="wan-2-6-i2v,other") as served:
            served.backend.hold()
            running = await queued(served)
            await status_of(served, running, "IN_PROGRESS")
            waiting = [await queued(served) for _ in range(3)]
            elsewhere = await served.http.post("/v2/other/run", json={"input": wish()})
            assert await post(served, "/purge-queue") == (
                200,
                {"removed": 3, "status": "completed"},
            )
            assert await post(served, "/purge-queue") == (
                200,
                {"removed": 0, "status": "completed"},
            )
            for job_id in waiting:
                assert (await get(served, f"/status/{job_id}"))[1]["status"] == "CANCELLED"
            served.backend.release()
            await status_of(served, running, "COMPLETED")
            other = await served.http.get(f"/v2/other/status/{elsewhere.json()['id']}")
            assert other.json()["status"] in ("IN_QUEUE", "IN_PROGRESS", "COMPLETED")

    asyncio.run(line())


def test_purge_queue_removes_all_of_a_long_queue(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(Jobs.of_owner.__kwdefaults__, "limit", 2)

    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            await status_of(served, await queued(served), "IN_PROGRESS")
            for _ in range(5):
                await queued(served)
            assert await post(served, "/purge-queue") == (
                200,
                {"removed": 5, "status": "completed"},
            )

    asyncio.run(line())


def test_health_counts_jobs_and_workers(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            await post(served, "/runsync", {"input": wish()})
            await post(served, "/runsync", {"input": wish(duration=7)})
            served.backend.hold()
            await status_of(served, await queued(served), "IN_PROGRESS")
            await queued(served)
            status, body = await get(served, "/health")
            assert status == 200
            jobs = {"completed": 1, "failed": 1, "inProgress": 1, "inQueue": 1, "retried": 0}
            assert body["jobs"] == jobs
            workers = ("idle", "initializing", "ready", "running", "throttled", "unhealthy")
            assert set(body["workers"]) == set(workers)
            assert (body["workers"]["running"], body["workers"]["idle"]) == (1, 0)
            served.backend.why = "the engine is starting"
            _, body = await get(served, "/health")
            assert (body["workers"]["initializing"], body["workers"]["ready"]) == (1, 0)

    asyncio.run(line())


# --- unknown endpoints and jobs ------------------------------------------------------------------


def test_an_unknown_endpoint_or_job_is_404_in_json(serve: Serve) -> None:
    async def line() -> None:
        async with serve(endpoints="wan-2-6-i2v,other") as served:
            answer = await served.http.post("/v2/nope/run", json={"input": wish()})
            assert (answer.status_code, answer.json()["error"]) == (404, "endpoint not found")
            _, done = await post(served, "/runsync", {"input": wish()})
            for path in (
                f"{BASE}/status/00000000-0000-4000-8000-000000000000-u1",
                f"/v2/other/status/{done['id']}",
                f"{BASE}/nothing",
                "/v2/nope/health",
                "/v2",
            ):
                answer = await served.http.get(path)
                assert answer.status_code == 404 and answer.json()["status"] == 404, path
            answer = await served.http.get(f"{BASE}/run")
            assert answer.status_code == 405 and answer.json()["error"]

    asyncio.run(line())


def test_a_job_past_its_time_to_live_is_404_and_can_be_retried(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            job_id = await queued(served, "hang")
            await status_of(served, job_id, "IN_PROGRESS")
            job = await served.jobs.get(job_id)
            assert job is not None
            await served.jobs.expire(job)
            for path in ("status", "stream", "status-sync"):
                assert (await get(served, f"/{path}/{job_id}"))[0] == 404
            assert (await post(served, f"/retry/{job_id}"))[0] == 200
            await status_of(served, job_id, "IN_QUEUE", "IN_PROGRESS")

    asyncio.run(line())


def test_policy_is_passed_on(serve: Serve) -> None:
    async def line() -> None:
        async with serve(job_seconds=9) as served:
            policy = {"executionTimeout": 6000, "ttl": 20_000, "lowPriority": True}
            job = await served.jobs.get(await queued(served, policy=policy))
            assert job is not None
            assert (job.run_seconds, job.ttl_seconds) == (6.0, 20.0)
            assert job.expires_ms - job.created_ms == 20_000
            wished = {"input": wish(prompt="fail:deadline_exceeded:The job ran longer")}
            status, body = await post(served, "/runsync", wished)
            assert (status, body["status"]) == (200, "FAILED")
            assert body["error"] == "executionTimeout exceeded"

    asyncio.run(line())


@pytest.mark.parametrize(("path", "mebibytes"), [("/run", 10), ("/runsync", 20)])
def test_bodies_have_the_documented_limits(serve: Serve, path: str, mebibytes: int) -> None:
    async def line() -> None:
        async with serve() as served:
            room = mebibytes * 2**20 - len('{"input": {"image": "", "prompt": "x"}}')
            for more, status in ((0, 200), (1, 413)):
                body = '{"input": {"image": "' + "x" * (room + more) + '", "prompt": "x"}}'
                answer = await served.http.post(BASE + path, content=body.encode())
                if status == 413:
                    assert answer.status_code == 413
                    assert answer.json()["error"] == f"The body is larger than {mebibytes} MB"
                else:  # The body was read: the error is about the picture's URL.
                    assert answer.status_code in (200, 400) and "id" in answer.json()

    asyncio.run(line())


def test_a_full_queue_is_429_with_a_time_to_retry(serve: Serve) -> None:
    async def line() -> None:
        async with serve(queue_max=1) as served:
            served.backend.hold()
            await status_of(served, await queued(served), "IN_PROGRESS")
            await queued(served)
            answer = await served.http.post(f"{BASE}/run", json={"input": wish()})
            assert answer.status_code == 429 and answer.json()["error"]
            assert int(answer.headers["retry-after"]) >= 1

    asyncio.run(line())


# --- unsupported features ------------------------------------------------------------------------


S3_CONFIG = {
    "accessId": "AKIDOFTHECALLER",
    "accessSecret": "the/callers/secret",
    "bucketName": "clips",
    "endpointUrl": "https://s3.example.com",
}


@pytest.mark.parametrize("operation", ["/run", "/runsync"])
@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"s3Config": S3_CONFIG}, 'field "s3Config" is not supported here'),
        ({"s3Config": "x"}, 'field "s3Config" must be an object'),
        ({"s3Config": {**S3_CONFIG, "accessId": 5}}, 'field "s3Config.accessId" must be a string'),
        ({"s3_config": S3_CONFIG}, 'field "s3Config" must be spelled like this'),
        ({"input": wish(s3Config=S3_CONFIG)}, 'field "s3Config" must be next to "input"'),
        ({"webhookV2": "https://example.com/hook"}, 'field "webhookV2" is not supported: use'),
    ],
)
def test_unsupported_features_are_refused(
    shared: Shared,
    caplog: pytest.LogCaptureFixture,
    operation: str,
    more: dict[str, Any],
    sentence: str,
) -> None:
    async def line() -> None:
        served = shared.served
        status, body = await post(served, operation, {"input": wish(), **more})
        assert (status, body["status"]) == (400, "FAILED")
        assert body["error"].startswith(sentence)
        told = json.dumps(body) + caplog.text
        assert "AKIDOFTHECALLER" not in told and "callers/secret" not in told
        assert (await served.jobs.counts())[0] == {}

    shared.run(line())


def test_empty_or_unknown_fields_are_not_refused(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def line() -> None:
        async with serve() as served:
            more = {"s3Config": {}, "webhookV2": None, "priority": 7}
            status, body = await post(served, "/runsync", {"input": wish(), **more})
            assert (status, body["status"]) == (200, "COMPLETED")

    caplog.set_level("INFO")
    asyncio.run(line())
    assert 'ignored beside "input": priority' in caplog.text


# --- references and text -------------------------------------------------------------------------

VIDEOS = ["https://example.com/ann.mp4", "https://example.com/cat.png"]
PROMPT = "character1 and character2 dance"


async def runsync(served: Served, endpoint: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    answer = await served.http.post(f"/v2/{endpoint}/runsync", json={"input": fields})
    return answer.status_code, answer.json()


def test_the_endpoint_for_references_keeps_their_order(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            fields = {"prompt": PROMPT, "references": VIDEOS, "aspect_ratio": "9:16"}
            status, body = await runsync(served, "wan-2-6-r2v", **fields)
            assert (status, body["status"]) == (200, "COMPLETED")
            assert served.backend.requests == {body["id"]: fields}
            job = await served.jobs.find("runpod", "local", body["id"])
            assert job is not None and job.task == "reference-to-video"

    asyncio.run(line())


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"prompt": PROMPT}, 'field "references" is required'),
        ({"prompt": PROMPT, "image": VIDEOS[1]}, 'field "references" is required'),
        ({"references": VIDEOS}, 'field "prompt" is required'),
        (
            {"prompt": PROMPT, "references": VIDEOS * 3},
            'field "references" must have at most 5 entries, got 6',
        ),
        (
            {"prompt": PROMPT, "references": VIDEOS[0]},
            'field "references" must be an array of strings, got string '
            '"https://example.com/ann.mp4"',
        ),
        (
            {"prompt": PROMPT, "references": VIDEOS, "image": VIDEOS[1]},
            'field "references" cannot be given with field "image"',
        ),
    ],
)
def test_the_endpoint_for_references_says_what_is_wrong(
    serve: Serve, fields: dict[str, Any], error: str
) -> None:
    async def line() -> None:
        async with serve() as served:
            status, body = await runsync(served, "wan-2-6-r2v", **fields)
            assert (status, body["status"], body["error"]) == (400, "FAILED", error)
            await served.http.post(f"/v2/wan-2-6-r2v/retry/{body['id']}")
            again = await served.http.get(f"/v2/wan-2-6-r2v/status-sync/{body['id']}")
            assert (again.json()["status"], again.json()["error"]) == ("FAILED", error)
            assert served.backend.requests == {}

    asyncio.run(line())


def test_the_endpoint_for_text_needs_only_a_prompt(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            status, body = await runsync(served, "wan-2-6-t2v", prompt="Rain")
            assert (status, body["status"]) == (200, "COMPLETED")
            assert served.backend.requests == {body["id"]: {"prompt": "Rain", "references": []}}
            status, body = await runsync(served, "wan-2-6-t2v", size="720p")
            assert (status, body["error"]) == (400, 'field "prompt" is required')
            for name in ("image", "last_image", "first_clip", "references"):
                for nothing in ("", [], None):
                    fields = {"prompt": "Rain", name: nothing}
                    assert (await runsync(served, "wan-2-6-t2v", **fields))[0] == 200
                status, body = await runsync(served, "wan-2-6-t2v", prompt="Rain", **{name: "x"})
                error = f'field "{name}" is not supported by wan-2-6-t2v'
                assert (status, body["error"]) == (400, error)

    asyncio.run(line())


def test_endpoints_whose_task_is_not_configured_are_not_found(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.models = {"image-to-video": "a model"}
            for endpoint in ("wan-2-6-r2v", "wan-2-6-t2v"):
                status, body = await runsync(served, endpoint, prompt="Rain", references=[])
                assert (status, body["error"]) == (404, "endpoint not found")
            assert (await runsync(served, "wan-2-6-i2v", **wish()))[0] == 200

    asyncio.run(line())


def test_endpoints_that_the_setting_does_not_name_are_not_found(serve: Serve) -> None:
    async def line() -> None:
        async with serve(endpoints="wan-2-6-i2v") as served:
            status, _ = await runsync(served, "wan-2-6-t2v", prompt="Rain")
            assert status == 404

    asyncio.run(line())
