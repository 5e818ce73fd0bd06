"""Oxen's media API over HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any

import pytest
from httpx import Response

from benchmarks.services.instant import CLIP
from tests.gateway.conftest import Listening, Serve, Served, Shared, eventually
from wan_engine.gateway.doors.oxen import door as oxen_door
from wan_engine.gateway.keys import new_entry

DOORS = (oxen_door.door,)

MODEL = "wan-v2-6-image-to-video"
REFERENCES = "wan-v2-6-reference-to-video"
GENERATE, QUEUE, EVENTS = "/api/ai/videos/generate", "/api/ai/queue", "/api/events"
SAMPLE: dict[str, Any] = {
    "model": MODEL,
    "prompt": "Zoom into the ox, while it is walking forward on the road, in cinematic fashion",
    "input_image": "https://example.com/ox_zoom_out_1926_1076.png",
}
NOT_FOUND = {
    "error": {"type": "resource_not_found", "title": "The requested resource could not be found"},
    "status": "error",
    "status_message": "resource_not_found",
}


async def enqueue(served: Served, **changes: Any) -> list[str]:
    answer = await served.http.post(QUEUE, json={**SAMPLE, **changes})
    assert answer.status_code == 200, answer.text
    generations = answer.json()["generations"]
    named = sorted(name for name in changes if name.startswith("target_"))
    assert all(sorted(one) == ["generation_id", "status", *named] for one in generations)
    assert {one["status"] for one in generations} == {"queued"}
    return [one["generation_id"] for one in generations]


async def shown(served: Served, generation_id: str) -> dict[str, Any]:
    answer = await served.http.get(f"{QUEUE}/{generation_id}")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


async def ended(served: Served, generation_id: str) -> dict[str, Any]:
    for _ in range(500):
        if (found := await shown(served, generation_id))["completed_at"] is not None:
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(found)


def assert_message(answer: Response, status: int, message: str) -> None:
    assert (answer.status_code, answer.json()) == (status, {"error": {"message": message}})


# --- synchronous requests ------------------------------------------------------------------------


def test_a_video_comes_as_a_link(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            answer = await served.http.post(GENERATE, json=SAMPLE)
            assert answer.status_code == 200
            body = answer.json()
            assert sorted(body) == ["created", "model", "videos"]
            assert (body["model"], type(body["created"])) == (MODEL, int)
            (video,) = body["videos"]
            clip = await served.http.get(video["url"])
            assert (list(video), clip.content) == (["url"], CLIP)

    asyncio.run(line())


def test_a_video_comes_inline(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            body = {**SAMPLE, "response_format": "b64_json"}
            (video,) = (await served.http.post(GENERATE, json=body)).json()["videos"]
            assert list(video) == ["b64_json"]
            assert base64.b64decode(video["b64_json"], validate=True) == CLIP

    asyncio.run(line())


def test_the_engine_gets_the_defaults_of_this_api(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            await served.http.post(GENERATE, json=SAMPLE)
            (request,) = served.backend.requests.values()
            assert isinstance(request, dict)
            assert (request["size"], request["duration"]) == ("1920*1080", 5)
            assert request["enable_prompt_expansion"] is True
            assert request["first_frame"] is True

    asyncio.run(line())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"duration": 7}, "duration: Input should be 5, 10 or 15"),
        ({"prompt": None}, "Value error, Either 'prompt' or 'multi_prompt' must be provided."),
        ({"prompt": None, "multi_prompt": ["a", "b"]}, "prompt: Field required"),
        ({"prompt": ""}, "prompt: String should have at least 1 character"),
        ({"input_image": None}, "input_image: Field required"),
        ({"input_image": "ox.png"}, "input_image: Invalid URL"),
        (
            {"response_format": "mp4"},
            "response_format: Input should be 'url' or 'b64_json'",
        ),
    ],
)
def test_parameters_are_checked_at_once(serve: Serve, changes: dict[str, Any], why: str) -> None:
    async def line() -> None:
        async with serve() as served:
            answer = await served.http.post(GENERATE, json={**SAMPLE, **changes})
            assert_message(answer, 400, f"Getting model response error: 422 - {why}")
            assert served.backend.requests == {}

    asyncio.run(line())


@pytest.mark.parametrize(
    ("prompt", "status", "message"),
    [
        (
            "fail:invalid_media:Invalid image URL: the server answered 403",
            400,
            "Getting model response error: 422 - Invalid image URL: the server answered 403",
        ),
        (
            "fail:out_of_memory:Too little memory",
            500,
            "Getting model response error: 500 - Too little memory",
        ),
    ],
)
def test_a_failure_says_whose_fault_it_is(
    serve: Serve, prompt: str, status: int, message: str
) -> None:
    async def line() -> None:
        async with serve() as served:
            answer = await served.http.post(GENERATE, json={**SAMPLE, "prompt": prompt})
            assert_message(answer, status, message)

    asyncio.run(line())


def test_a_synchronous_request_is_not_in_the_queue(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            waiting = asyncio.create_task(served.http.post(GENERATE, json=SAMPLE))
            await eventually(lambda: served.backend.requests)
            (job_id,) = served.backend.requests
            assert (await served.http.get(QUEUE)).json() == {"count": 0, "generations": []}
            assert (await served.http.get(f"{QUEUE}/{job_id}")).status_code == 404
            served.backend.release()
            assert (await waiting).status_code == 200

    asyncio.run(line())


def test_waiting_callers_are_answered_when_the_gateway_ends(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            body = {**SAMPLE, "prompt": "hang"}
            waiting = asyncio.create_task(served.http.post(GENERATE, json=body))
            await eventually(lambda: served.backend.requests)
            served.jobs.close()
            answer = await waiting
            assert_message(
                answer, 500, "Getting model response error: 500 - The generation was stopped"
            )
            await eventually(lambda: served.backend.stopped)

    asyncio.run(line())


# --- the queue -----------------------------------------------------------------------------------


def test_a_generation_goes_from_queued_to_succeeded(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            first, second = await enqueue(served, duration=10, num_generations=2)
            assert str(uuid.UUID(first)) == first
            while (state := await shown(served, first))["status"] == "queued":
                await asyncio.sleep(0.01)
            assert state == {
                "generation_id": first,
                "model_name": MODEL,
                "prompt": SAMPLE["prompt"],
                "media_type": "video",
                "status": "processing",
                "result_url": None,
                "error_message": None,
                "enqueued_at": state["enqueued_at"],
                "started_at": state["started_at"],
                "completed_at": None,
                "target_namespace": None,
                "target_repo": None,
                "target_directory": None,
                "input_image": SAMPLE["input_image"],
                "duration": 10,
            }
            assert (await shown(served, second))["status"] == "queued"
            served.backend.release()
            done = await ended(served, first)
            assert done["status"] == "succeeded"
            assert done["enqueued_at"] <= done["started_at"] <= done["completed_at"]
            assert (await served.http.get(done["result_url"])).content == CLIP

    asyncio.run(line())


def test_wrong_parameters_fail_when_the_generation_runs(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            (generation_id,) = await enqueue(served, duration=7, input_image=None)
            found = await ended(served, generation_id)
            assert (found["status"], found["result_url"]) == ("failed", None)
            assert found["error_message"] == (
                "Getting model response error: 422 - input_image: Field required"
            )
            assert served.backend.requests == {}

    asyncio.run(line())


def test_a_generation_that_fails_says_why(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            why = "Invalid image URL: the server answered 404"
            (generation_id,) = await enqueue(served, prompt=f"fail:invalid_media:{why}")
            found = await ended(served, generation_id)
            assert (found["status"], found["error_message"]) == ("failed", why)

    asyncio.run(line())


@pytest.mark.parametrize("number", [0, 13, "many", 1.5, True])
def test_only_one_to_twelve_generations_are_accepted(shared: Shared, number: object) -> None:
    async def line() -> None:
        served = shared.served
        answer = await served.http.post(QUEUE, json={**SAMPLE, "num_generations": number})
        assert_message(answer, 400, "num_generations must be an integer between 1 and 12")

    shared.run(line())


@pytest.mark.parametrize("path", [GENERATE, QUEUE])
def test_an_unavailable_model_is_not_found(shared: Shared, path: str) -> None:
    async def line() -> None:
        served = shared.served
        answer = await served.http.post(path, json={**SAMPLE, "model": "bad-model-name"})
        assert_message(answer, 404, "Model not found: bad-model-name")

    shared.run(line())


@pytest.mark.parametrize("path", [GENERATE, QUEUE])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"model": null}', b"\xff", b"[" * 100_000, b'{"a": 1e999}']
)
def test_an_invalid_request_is_refused(shared: Shared, path: str, body: bytes) -> None:
    async def line() -> None:
        served = shared.served
        answer = await served.http.post(path, content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_params"
        assert (answer.json()["status"], bool(answer.json()["error"]["detail"])) == (
            "error",
            True,
        )

    shared.run(line())


def test_odd_values_are_queued_and_shown(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            sample = json.dumps(SAMPLE)[:-1]
            body = f'{sample}, "a": "\\ud800", "c": "\\u0000", "d": {{"e": [1]}}}}'
            answer = await served.http.post(QUEUE, content=body.encode())
            found = await ended(served, answer.json()["generations"][0]["generation_id"])
            assert found["status"] == "succeeded"
            assert (found["a"], found["c"], found["d"]) == ("?", "\0", {"e": [1]})

    asyncio.run(line())


def test_a_prompt_is_returned_unchanged_whatever_is_beside_it(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            crowd = {f"key {number}": "z" * 1500 for number in range(10)}
            body = {**crowd, **SAMPLE, "prompt": "x" * 3000, "target_repo": "ox/clips"}
            answer = (await served.http.post(QUEUE, json=body)).json()["generations"][0]
            assert answer["target_repo"] == "ox/clips"
            found = await shown(served, answer["generation_id"])
            assert (found["prompt"], found["target_repo"]) == ("x" * 3000, "ox/clips")

    asyncio.run(line())


def test_all_generations_are_listed_with_what_they_cost(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            for number in range(3):
                (last,) = await enqueue(served, target_repo=f"repo {number}")
                await ended(served, last)
            await served.http.post(GENERATE, json=SAMPLE)
            failing = await enqueue(served, prompt="fail:encode_failed:no")
            await ended(served, failing[0])
            history = "/api/ai/generations"
            found = (await served.http.get(history, params={"page_size": 2, "page": 2})).json()
            rows = found.pop("generations")
            assert found == {
                "count": 2,
                "page_number": 2,
                "page_size": 2,
                "total_pages": 3,
                "total_entries": 5,
                "total_cost": "2.0",
            }
            assert rows[0]["generation_id"] == last
            user = {"user_id": "local", "username": "local", "user_image": None}
            assert rows[0] == {**await shown(served, last), "cost": "0.5", **user}
            one = (await served.http.get(f"{history}/{last}/")).json()
            assert one == {
                "status": "success",
                "status_message": "resource_found",
                "generation": rows[0],
            }
            assert (await served.http.get(f"{history}/none")).json() == NOT_FOUND
            for filters, count in (
                ({"status": "failed"}, 1),
                ({"repo": "repo 1"}, 1),
                ({"namespace": "local", "model": MODEL}, 5),
                ({"media_type": "image"}, 0),
                ({"model": "kling"}, 0),
            ):
                answer = (await served.http.get(history, params=filters)).json()
                assert answer["total_entries"] == count, filters
            for wrong in ({"page_size": 1001}, {"page": 0}, {"status": "done"}):
                assert (await served.http.get(history, params=wrong)).status_code == 400

    asyncio.run(line())


def test_no_field_of_a_caller_hides_a_generation_from_its_queue(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            (hidden,) = await enqueue(served, waited_for=True)
            assert (await served.http.get(f"{QUEUE}/{hidden}")).status_code == 200
            assert (await served.http.delete(f"{QUEUE}/{hidden}")).status_code == 200

    asyncio.run(line())


def test_the_list_shows_unfinished_generations_the_newest_first(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            (done,) = await enqueue(served)
            await ended(served, done)
            served.backend.hold()
            (running,) = await enqueue(served)
            await eventually(lambda: running in served.backend.requests)
            await asyncio.sleep(0.002)  # at another millisecond, because the list is sorted by time
            (waiting,) = await enqueue(served, target_namespace="team")
            found = (await served.http.get(QUEUE)).json()
            assert found["count"] == 2
            assert [one["generation_id"] for one in found["generations"]] == [waiting, running]

            async def ids(**filters: str) -> list[str]:
                answer = (await served.http.get(QUEUE, params=filters)).json()
                assert answer["count"] == len(answer["generations"])
                return [one["generation_id"] for one in answer["generations"]]

            assert await ids(status="succeeded") == [done]
            assert await ids(status="failed") == []
            assert await ids(model=MODEL) == [waiting, running]
            assert await ids(model="kling") == await ids(media_type="image") == []
            assert await ids(media_type="video") == [waiting, running]
            assert await ids(namespace="team") == [waiting]
            assert await ids(namespace="local", status="queued") == []
            assert await ids(repo="ox/assets") == await ids(folder="a") == []
            row = (await served.http.get(f"{QUEUE}/{waiting}")).json()
            assert (row["target_namespace"], row["target_repo"]) == ("team", None)
            wrong = await served.http.get(QUEUE, params={"status": "done"})
            assert wrong.status_code == 400
            assert "queued, processing, succeeded" in wrong.json()["error"]["detail"]

    asyncio.run(line())


def test_a_generation_can_be_cancelled_in_any_state(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            running, waiting = await enqueue(served, num_generations=2)
            await eventually(lambda: running in served.backend.requests)
            for generation_id in (waiting, running):
                answer = await served.http.delete(f"{QUEUE}/{generation_id}")
                assert answer.status_code == 200
                assert answer.json() == {"status": "success", "generation_id": generation_id}
                assert (await shown(served, generation_id))["status"] == "cancelled"
            await eventually(lambda: served.backend.stopped)
            assert served.backend.stopped == [running]
            served.backend.release()
            (done,) = await enqueue(served)
            await ended(served, done)
            assert (await served.http.delete(f"{QUEUE}/{done}")).status_code == 200
            assert (await shown(served, done))["status"] == "succeeded"

    asyncio.run(line())


def test_an_unknown_generation_is_not_found(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            for unknown in (str(uuid.uuid4()), "x", "é"):
                for method in ("GET", "DELETE"):
                    answer = await served.http.request(method, f"{QUEUE}/{unknown}")
                    assert (answer.status_code, answer.json()) == (404, NOT_FOUND)

    asyncio.run(line())


def test_a_full_queue_says_when_to_come_again(serve: Serve) -> None:
    async def line() -> None:
        async with serve(queue_max=3) as served:
            served.backend.hold()
            answer = await served.http.post(QUEUE, json={**SAMPLE, "num_generations": 4})
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) > 0
            assert answer.json()["error"]["type"] == "too_many_requests"
            assert (await served.http.get(QUEUE)).json()["count"] == 0

    asyncio.run(line())


# --- keys ----------------------------------------------------------------------------------------


def test_every_route_needs_a_key(serve: Serve) -> None:
    _, entry = new_entry("ann")
    routes = [
        ("POST", GENERATE),
        ("POST", QUEUE),
        ("GET", QUEUE),
        ("GET", f"{QUEUE}/x"),
        ("DELETE", f"{QUEUE}/x"),
        ("GET", EVENTS),
        ("GET", "/api/ai/models"),
        ("GET", f"/api/ai/models/{MODEL}"),
    ]

    async def line() -> None:
        async with serve(api_keys=entry) as served:
            for method, path in routes:
                for headers in ({}, {"Authorization": "Bearer wrong"}):
                    answer = await served.http.request(method, path, headers=headers)
                    assert answer.status_code == 401, path
                    assert answer.json()["error"]["type"] == "unauthenticated"
                    assert answer.json()["status_message"] == "unauthenticated"

    asyncio.run(line())


def test_callers_see_their_own_generations_only(serve: Serve) -> None:
    (ann, ann_entry), (bob, bob_entry) = new_entry("ann"), new_entry("bob")
    mine, other = ({"Authorization": f"Bearer {key}"} for key in (ann, bob))

    async def line() -> None:
        async with serve(api_keys=f"{ann_entry},{bob_entry}") as served:
            served.backend.hold()
            answer = await served.http.post(QUEUE, json=SAMPLE, headers=mine)
            path = f"{QUEUE}/{answer.json()['generations'][0]['generation_id']}"
            assert (await served.http.get(path, headers=mine)).status_code == 200
            assert (await served.http.get(path, headers=other)).status_code == 404
            assert (await served.http.delete(path, headers=other)).status_code == 404
            assert (await served.http.get(QUEUE, headers=mine)).json()["count"] == 1
            assert (await served.http.get(QUEUE, headers=other)).json()["count"] == 0
            own = {"namespace": "ann"}
            assert (await served.http.get(QUEUE, headers=mine, params=own)).json()["count"] == 1

    asyncio.run(line())


# --- references ----------------------------------------------------------------------------------


def test_a_prompt_alone_is_a_video_of_the_reference_model(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            body = {"model": REFERENCES, "prompt": "An ox slowly walking down the road. Cinematic."}
            answer = (await served.http.post(GENERATE, json=body)).json()
            assert answer["model"] == REFERENCES
            (request,) = served.backend.requests.values()
            assert isinstance(request, dict)
            assert (request["references"], request["prompt"]) == ([], body["prompt"])
            assert "image" not in request

    asyncio.run(line())


def test_reference_videos_go_through_the_queue_in_their_order(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            videos = ["https://example.com/ann.mp4", "https://example.com/ox.mov"]
            changes = {"model": REFERENCES, "input_image": None, "input_videos": videos}
            (one,) = await enqueue(served, **changes)
            found = await ended(served, one)
            assert (found["status"], found["model_name"]) == ("succeeded", REFERENCES)
            assert found["input_videos"] == videos
            request: Any = served.backend.requests[one]
            assert request["references"] == videos
            job = await served.jobs.find("oxen", "local", one)
            assert job is not None and job.task == "reference-to-video"
            (failed,) = await enqueue(served, **{**changes, "input_videos": videos * 2})
            assert "input_videos: List should have at most 3" in str(await ended(served, failed))

    asyncio.run(line())


# --- models --------------------------------------------------------------------------------------


def test_the_models_are_listed_and_described(serve: Serve) -> None:
    async def line() -> None:
        async with serve(prices={"1280*720": "0.01"}) as served:
            listed = (await served.http.get("/api/ai/models")).json()
            assert listed["object"] == "list"
            model, other = listed["data"]
            assert other["id"] == REFERENCES
            one = await served.http.get(f"/api/ai/models/{MODEL}")
            assert (one.status_code, one.json()) == (200, model)
            assert model["json_request_schema"] == model["request_schema"]
            assert model["pricing"]["cost_per_second"] == 0.01
            assert model["pricing"]["cost_per_second_high_res"] == 0.15
            by_size = {"720p": 0.01, "1080p": 0.15}
            assert model["pricing"]["cost_per_second_by_resolution"] == by_size
            assert model["showcase"] == [] and model["created"] == 1_765_843_200
            for filters, count in (
                ({"developer_name": "alibaba", "provider_name": "oxen", "action": "video"}, 2),
                ({"action": "image_to_video"}, 1),
                ({"developer_name": "kling"}, 0),
                ({"provider_name": "fal"}, 0),
                ({"action": "chat"}, 0),
            ):
                found = await served.http.get("/api/ai/models/", params=filters)
                assert len(found.json()["data"]) == count, filters
            for path, count in (("featured", 2), ("favorites", 0)):
                found = await served.http.get(f"/api/ai/models/{path}")
                assert len(found.json()["data"]) == count, path
            assert (await served.http.get("/api/ai/models/search")).status_code == 400
            for path in ("/api/ai/models", "/api/ai/models/search"):
                found = await served.http.get(path, params={"search": "image-to"})
                assert found.json() == {"object": "list", "data": [model]}
                none = await served.http.get(path, params={"search": "kling"})
                assert none.json() == {"object": "list", "data": []}

    asyncio.run(line())


def test_a_model_has_the_prices_of_its_task(serve: Serve) -> None:
    async def line() -> None:
        prices = {"reference-to-video": {"1920*1080": "0.2"}}
        async with serve(prices=prices) as served:
            found = (await served.http.get(f"/api/ai/models/{REFERENCES}")).json()
            assert found["json_request_schema"] == found["request_schema"]
            assert found["pricing"]["cost_per_second"] == 0.10
            assert found["pricing"]["cost_per_second_high_res"] == 0.2

    asyncio.run(line())


@pytest.mark.parametrize(
    ("task", "here", "away"),
    [("image-to-video", MODEL, REFERENCES), ("reference-to-video", REFERENCES, MODEL)],
)
def test_a_model_whose_task_is_not_configured_is_not_found(
    serve: Serve, task: str, here: str, away: str
) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.models = {task: "a model"}
            (model,) = (await served.http.get("/api/ai/models")).json()["data"]
            assert model["id"] == here
            message = f"Model not found: {away}"
            assert_message(await served.http.get(f"/api/ai/models/{away}"), 404, message)
            for path in (GENERATE, QUEUE):
                answer = await served.http.post(path, json={**SAMPLE, "model": away})
                assert_message(answer, 404, message)
                answer = await served.http.post(path, json={**SAMPLE, "model": here})
                assert answer.status_code == 200

    asyncio.run(line())


def test_an_unavailable_model_has_no_description(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            answer = await served.http.get("/api/ai/models/bad-model-name")
            assert_message(answer, 404, "Model not found: bad-model-name")

    asyncio.run(line())


# --- disconnects ---------------------------------------------------------------------------------


def test_a_caller_that_disconnects_ends_the_work(
    listen: Callable[..., Listening], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wan_engine.gateway.doors.context._WAIT_SECONDS", 0.1)
    here = listen()
    connection = HTTPConnection(here.url.removeprefix("http://"), timeout=10)
    connection.request("POST", GENERATE, json.dumps({**SAMPLE, "prompt": "hang"}))
    deadline = time.monotonic() + 10
    while not here.backend.requests:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    connection.close()
    while not here.backend.stopped:
        assert time.monotonic() < deadline, "the work goes on"
        time.sleep(0.05)
