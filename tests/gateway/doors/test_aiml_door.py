"""The AI/ML API over HTTP."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from httpx import Response

from tests.gateway.conftest import Serve, Served, Shared
from wan_engine.gateway.keys import new_entry

PATH = "/v2/video/generations"
OLDER_PATHS = (
    "/v2/generate/video/alibaba/generation",
    "/v1/video/generations",
    "/video/generations",
)
SAMPLE: dict[str, Any] = {
    "model": "alibaba/wan-2-6-i2v",
    "prompt": "Mona Lisa puts on glasses with her hands.",
    "image_url": "https://example.com/mona_lisa_extended.jpg",
    "duration": "5",
}


async def poll(served: Served, generation_id: str, **options: Any) -> Response:
    return await served.http.get(PATH, params={"generation_id": generation_id}, **options)


async def ended(served: Served, generation_id: str) -> dict[str, Any]:
    for _ in range(500):
        body = (await poll(served, generation_id)).json()
        if body["status"] not in ("queued", "generating"):
            return body
        await asyncio.sleep(0.01)
    raise AssertionError(body)


def test_a_generation_goes_from_queued_to_the_video(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            answer = await served.http.post(PATH, json=SAMPLE)
            assert answer.status_code == 200
            generation_id = answer.json()["id"]
            assert answer.json() == {
                "id": generation_id,
                "status": "queued",
                "meta": {"usage": {"credits_used": 1575000}},
            }
            second = (await served.http.post(PATH, json=SAMPLE)).json()["id"]
            while (state := (await poll(served, generation_id)).json())["status"] == "queued":
                await asyncio.sleep(0.01)
            assert state == {"id": generation_id, "status": "generating"}
            assert (await poll(served, second)).json() == {"id": second, "status": "queued"}
            served.backend.release()
            body = await ended(served, generation_id)
            url = body["video"]["url"]
            assert body == {"id": generation_id, "status": "completed", "video": {"url": url}}
            clip = await served.http.get(url)
            assert (clip.status_code, clip.headers["content-type"]) == (200, "video/mp4")

    asyncio.run(line())


def test_the_link_lives_for_a_day(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            created = (await served.http.post(PATH, json=SAMPLE)).json()
            body = await ended(served, created["id"])
            expires = int(parse_qs(urlsplit(body["video"]["url"]).query)["expires"][0])
            assert expires - time.time() == pytest.approx(86_400, abs=60)

    asyncio.run(line())


def test_the_engine_gets_the_defaults_of_this_api(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            body = {**SAMPLE, "duration": None}
            created = (await served.http.post(PATH, json=body)).json()
            assert created["meta"]["usage"]["credits_used"] == 3150000
            await ended(served, created["id"])
            request: Any = served.backend.requests[created["id"]]
            assert (request["size"], request["duration"]) == ("1920*1080", 10)
            assert request["enable_prompt_expansion"] is True
            assert request["image"] == SAMPLE["image_url"]

    asyncio.run(line())


def test_credits_follow_the_gateway_s_prices(serve: Serve) -> None:
    async def line() -> None:
        async with serve(prices={"1920*1080": "0.03"}) as served:
            created = (await served.http.post(PATH, json=SAMPLE)).json()
            assert created["meta"]["usage"]["credits_used"] == 315000

    asyncio.run(line())


REFERENCES: dict[str, Any] = {
    "model": "alibaba/wan-2-6-r2v",
    "prompt": "character1 hands character2 her glasses.",
    "video_urls": ["https://example.com/ann.mp4", "https://example.com/bob.mov"],
}


def test_reference_videos_cost_and_arrive_as_the_page_says(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            created = (await served.http.post(PATH, json=REFERENCES)).json()
            assert created["meta"]["usage"]["credits_used"] == 3150000
            assert (await ended(served, created["id"]))["status"] == "completed"
            request: Any = served.backend.requests[created["id"]]
            assert request["references"] == REFERENCES["video_urls"]
            assert "image" not in request and "audio" not in request

    asyncio.run(line())


def test_references_have_the_prices_of_their_task(serve: Serve) -> None:
    async def line() -> None:
        async with serve(prices={"reference-to-video": {"1920*1080": "0.03"}}) as served:
            created = (await served.http.post(PATH, json=REFERENCES)).json()
            assert created["meta"]["usage"]["credits_used"] == 630000

    asyncio.run(line())


def test_a_model_whose_task_is_not_configured_is_unknown(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.models = {"image-to-video": "a model"}
            message = assert_failure(await served.http.post(PATH, json=REFERENCES), 400)
            assert message.endswith("received 'alibaba/wan-2-6-r2v' at \"model\"")
            assert message.count("alibaba/wan-2-6-r2v") == 1
            assert (await served.http.post(PATH, json=SAMPLE)).status_code == 200

    asyncio.run(line())


@pytest.mark.parametrize("path", OLDER_PATHS)
def test_the_older_paths_are_the_same_api(serve: Serve, path: str) -> None:
    async def line() -> None:
        async with serve() as served:
            created = (await served.http.post(path, json=SAMPLE)).json()
            body = await ended(served, created["id"])
            older = await served.http.get(path, params={"generation_id": created["id"]})
            assert older.json() == body
            refused = await served.http.post(path, json={})
            assert (refused.status_code, refused.json()["path"]) == (400, path)

    asyncio.run(line())


def assert_failure(answer: Response, status: int, path: str = PATH) -> str:
    body = answer.json()
    assert answer.status_code == status
    assert sorted(body) == ["message", "path", "requestId", "statusCode", "timestamp"]
    assert (body["statusCode"], body["path"]) == (str(status), path)
    assert body["timestamp"].endswith("Z")
    message: str = body["message"]
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"duration": 8}, 'Expected 5 | 10 | 15, received 8 at "duration"'),
        ({"model": "alibaba/nope"}, "received 'alibaba/nope' at \"model\""),
        ({"image_url": None}, 'Required at "image_url"'),
        ({"prompt": None}, 'Required at "prompt"'),
    ],
)
def test_a_wrong_body_is_refused_at_once(
    shared: Shared, changes: dict[str, Any], message: str
) -> None:
    async def line() -> None:
        served = shared.served
        answer = await served.http.post(PATH, json={**SAMPLE, **changes})
        found = assert_failure(answer, 400)
        assert found.startswith("Body validation error\n") and found.endswith(message)
        assert served.backend.requests == {}

    shared.run(line())


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000, b'{"a": 1e999}'],
)
def test_a_body_that_is_not_a_json_object_is_refused(shared: Shared, body: bytes) -> None:
    async def line() -> None:
        served = shared.served
        assert_failure(await served.http.post(PATH, content=body), 400)

    shared.run(line())


def test_half_a_surrogate_pair_does_no_harm(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            body = b'{"model": "\\ud800", "prompt": "x", "image_url": "https://example.com/a.png"}'
            assert "received '?'" in assert_failure(await served.http.post(PATH, content=body), 400)

    asyncio.run(line())


@pytest.mark.parametrize(
    ("prompt", "name", "message"),
    [
        (
            "fail:invalid_media:Invalid image URL: the server answered 404",
            "InvalidURL",
            "Invalid image URL: the server answered 404",
        ),
        (
            "fail:content_policy:Content policy: prompt was flagged",
            "DataInspectionFailed",
            "Content policy: prompt was flagged",
        ),
        ("fail:out_of_memory:Too little memory", "InternalError", "Too little memory"),
    ],
)
def test_a_later_failure_is_an_error_of_the_generation(
    serve: Serve, prompt: str, name: str, message: str
) -> None:
    async def line() -> None:
        async with serve() as served:
            created = await served.http.post(PATH, json={**SAMPLE, "prompt": prompt})
            assert created.status_code == 200
            assert await ended(served, created.json()["id"]) == {
                "id": created.json()["id"],
                "status": "error",
                "error": {"name": name, "message": message},
            }

    asyncio.run(line())


def test_an_unknown_generation_is_not_found(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            for unknown in ("V2cdWP9kao8xiofM-OvwG", "\0", "x" * 1000, "é"):
                assert_failure(await poll(served, unknown), 404)
            assert 'Required at "generation_id"' in assert_failure(await served.http.get(PATH), 400)

    asyncio.run(line())


def test_a_missing_and_a_wrong_key_are_refused_in_this_api_s_words(serve: Serve) -> None:
    key, entry = new_entry("ann")

    async def line() -> None:
        async with serve(api_keys=entry) as served:
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                for answer in (
                    await served.http.post(PATH, json=SAMPLE, headers=headers),
                    await poll(served, "x", headers=headers),
                ):
                    message = assert_failure(answer, 401)
                    assert message.startswith("This request requires a valid API key.")
            right = {"Authorization": f"Bearer {key}"}
            assert (await served.http.post(PATH, json=SAMPLE, headers=right)).status_code == 200

    asyncio.run(line())


def test_another_caller_s_generation_is_not_found(serve: Serve) -> None:
    (ann, ann_entry), (bob, bob_entry) = new_entry("ann"), new_entry("bob")

    async def line() -> None:
        async with serve(api_keys=f"{ann_entry},{bob_entry}") as served:
            mine = {"Authorization": f"Bearer {ann}"}
            created = (await served.http.post(PATH, json=SAMPLE, headers=mine)).json()
            assert (await poll(served, created["id"], headers=mine)).status_code == 200
            other = await poll(served, created["id"], headers={"Authorization": f"Bearer {bob}"})
            assert_failure(other, 404)

    asyncio.run(line())


def test_a_job_of_another_door_is_not_found(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            body = {"input": {"prompt": "x", "image": "https://example.com/a.png"}}
            job = (await served.http.post("/v2/wan-2-6-i2v/run", json=body)).json()
            assert_failure(await poll(served, job["id"]), 404)
            created = (await served.http.post(PATH, json=SAMPLE)).json()
            runpod = await served.http.get(f"/v2/wan-2-6-i2v/status/{created['id']}")
            assert runpod.status_code == 404

    asyncio.run(line())


def test_a_full_queue_says_when_to_come_again(serve: Serve) -> None:
    async def line() -> None:
        async with serve(queue_max=1) as served:
            served.backend.hold()
            answers = [await served.http.post(PATH, json=SAMPLE) for _ in range(4)]
            full = answers[-1]
            assert assert_failure(full, 429) == "Too Many Requests"
            assert int(full.headers["retry-after"]) > 0

    asyncio.run(line())


def test_wrong_methods_and_too_large_bodies_are_refused_in_this_api_s_shape(
    serve: Serve,
) -> None:
    async def line() -> None:
        async with serve(request_max_bytes=2048) as served:
            assert_failure(await served.http.delete(PATH), 405)
            large = {**SAMPLE, "prompt": "x" * 4096}
            assert_failure(await served.http.post(PATH, json=large), 413)
            below = f"{PATH}/nothing"
            assert_failure(await served.http.get(below), 404, below)

    asyncio.run(line())


def test_the_models_are_listed_by_all_of_their_names(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            found = (await served.http.get("/models")).json()
            assert found == (await served.http.get("/v1/models/")).json()
            assert found["object"] == "list" and len(found["data"]) == 5
            first, *_, last = found["data"]
            assert first["id"] == "alibaba/wan-2-6-i2v"
            assert (first["type"], first["features"]) == ("video", ["image-to-video"])
            assert (first["object"], first["created"]) == ("model", 1_765_843_200)
            assert (last["id"], last["features"]) == (
                "alibaba/wan-2-6-r2v",
                ["reference-to-video"],
            )
            served.backend.models = {"image-to-video": "wan-tiny"}
            found = (await served.http.get("/models")).json()
            assert last not in found["data"] and len(found["data"]) == 4

    asyncio.run(line())
