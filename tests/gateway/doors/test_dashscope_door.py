"""DashScope's API over HTTP."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from httpx import Response

from tests.gateway.conftest import Serve, Served, Shared, eventually
from wan_engine.gateway.doors.dashscope import door as dashscope_door
from wan_engine.gateway.doors.dashscope import wire
from wan_engine.gateway.keys import digest

DOORS = (dashscope_door.door,)

CREATE = "/api/v1/services/aigc/video-generation/video-synthesis"
TASKS = "/api/v1/tasks"
ASYNC = {"X-DashScope-Async": "enable"}
PICTURE = "https://example.com/cat.png"
SAMPLE: dict[str, Any] = {
    "model": "wan2.6-i2v",
    "input": {"prompt": "The cat runs.", "img_url": PICTURE},
    "parameters": {"resolution": "720P", "duration": 10, "prompt_extend": True},
}
REFERENCES: dict[str, Any] = {
    "model": "wan2.6-r2v",
    "input": {
        "prompt": "character1 waves to character2.",
        "reference_urls": ["https://example.com/ann.mp4", "https://example.com/bob.png"],
    },
    "parameters": {"size": "1280*720", "duration": 5},
}
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}")


def sample(model: str = "wan2.6-i2v", **more: dict[str, Any]) -> dict[str, Any]:
    """The documented sample with other fields in `input` or `parameters`. Fields that are None are
    left out."""
    base = REFERENCES if "r2v" in model else SAMPLE
    return {
        "model": model,
        "input": {**base["input"], **more.get("given", {})},
        "parameters": {**base["parameters"], **more.get("parameters", {})},
    }


async def create(served: Served, body: object, **headers: str) -> Response:
    return await served.http.post(CREATE, json=body, headers={**ASYNC, **headers})


async def task(served: Served, task_id: str) -> dict[str, Any]:
    answer = await served.http.get(f"{TASKS}/{task_id}")
    assert answer.status_code == 200
    body: dict[str, Any] = answer.json()
    return body


async def ended(served: Served, body: object) -> dict[str, Any]:
    """The task of a request once it has ended."""
    answer = await create(served, body)
    assert answer.status_code == 200, answer.text
    task_id = answer.json()["output"]["task_id"]
    while (found := await task(served, task_id))["output"]["task_status"] in ("PENDING", "RUNNING"):
        await asyncio.sleep(0.01)
    return found


async def told(served: Served, body: object) -> dict[str, Any]:
    """The request that reaches the engine."""
    found = await ended(served, body)
    request: Any = served.backend.requests[found["output"]["task_id"]]
    return {name: value for name, value in request.items() if value is not None}


def assert_failure(answer: Response, status: int, code: str, message: str) -> None:
    body = answer.json()
    assert (answer.status_code, body["code"], body["message"]) == (status, code, message)
    assert set(body) == {"code", "message", "request_id"}


# --- a task --------------------------------------------------------------------------------------


def test_a_task_goes_from_pending_to_the_video(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            body = (await create(served, SAMPLE)).json()
            task_id = body["output"]["task_id"]
            assert body["output"] == {"task_status": "PENDING", "task_id": task_id}
            assert body["request_id"]
            second = (await create(served, SAMPLE)).json()["output"]["task_id"]
            while (state := (await task(served, task_id))["output"])["task_status"] == "PENDING":
                await asyncio.sleep(0.01)
            assert state["task_status"] == "RUNNING" and TIME.fullmatch(state["scheduled_time"])
            assert (await task(served, second))["output"]["task_status"] == "PENDING"
            served.backend.release()
            done = await ended(served, SAMPLE)
            output = done["output"]
            assert set(output) == {
                *("task_id", "task_status", "submit_time", "scheduled_time", "end_time"),
                *("orig_prompt", "video_url"),
            }
            assert output["orig_prompt"] == "The cat runs."
            assert all(TIME.fullmatch(output[f"{name}_time"]) for name in ("submit", "end"))
            assert done["usage"] == {
                "duration": 10,
                "input_video_duration": 0,
                "output_video_duration": 10,
                "video_count": 1,
                "SR": 720,
            }
            clip = await served.http.get(output["video_url"])
            assert (clip.status_code, clip.headers["content-type"]) == (200, "video/mp4")
            expires = int(parse_qs(urlsplit(output["video_url"]).query)["expires"][0])
            assert expires - time.time() == pytest.approx(86_400, abs=60)

    asyncio.run(line())


def test_an_unknown_task_is_unknown(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def line() -> None:
        async with serve(api_keys={name: digest(name) for name in ("ann", "bob")}) as served:
            served.http.headers["Authorization"] = "Bearer ann"
            done = await ended(served, SAMPLE)
            task_id = done["output"]["task_id"]
            other = await served.http.get(
                f"{TASKS}/{task_id}", headers={"Authorization": "Bearer bob"}
            )
            unknown = {"task_id": task_id, "task_status": "UNKNOWN"}
            assert other.json()["output"] == unknown
            assert (await task(served, "none"))["output"]["task_status"] == "UNKNOWN"
            monkeypatch.setattr(wire, "LIFE_SECONDS", -1)  # as after a day
            assert (await task(served, task_id))["output"] == unknown

    asyncio.run(line())


def test_only_a_waiting_task_can_be_cancelled(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            first = (await create(served, SAMPLE)).json()["output"]["task_id"]
            second = (await create(served, SAMPLE)).json()["output"]["task_id"]
            await eventually(lambda: served.backend.requests)
            answer = await served.http.post(f"{TASKS}/{second}/cancel")
            assert answer.status_code == 200 and set(answer.json()) == {"request_id"}
            assert (await task(served, second))["output"]["task_status"] == "CANCELED"
            for task_id in (first, second, "none"):
                assert_failure(
                    await served.http.post(f"{TASKS}/{task_id}/cancel"),
                    400,
                    "UnsupportedOperation",
                    "Failed to cancel the task, please confirm if the task is in PENDING status.",
                )

    asyncio.run(line())


def test_the_tasks_are_listed_a_page_at_a_time(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            ids = [(await ended(served, SAMPLE))["output"]["task_id"] for _ in range(3)]
            failing = sample(given={"prompt": "fail:encode_failed:no"})
            failed = (await ended(served, failing))["output"]["task_id"]
            page = {"page_no": 2, "page_size": 2, "status": "SUCCEEDED"}
            body = (await served.http.get(TASKS, params=page)).json()
            assert [row["task_id"] for row in body["data"]] == ids[:1]
            assert (body["total"], body["total_page"]) == (3, 2)
            body = (await served.http.get(TASKS, params={"model_name": "wan2.6-i2v"})).json()
            assert body["total"] == 4 and body["data"][0]["task_id"] == failed
            for odd in ("wan9", "\0"):  # Postgres is not asked, because it accepts no NUL
                body = (await served.http.get(TASKS, params={"model_name": odd})).json()
                assert (body["data"], body["total"]) == ([], 0)
            assert (await served.http.get(TASKS, params={"page_size": 1000})).status_code == 400

    asyncio.run(line())


# --- requests to the engine ----------------------------------------------------------------------


def test_the_engine_gets_the_defaults_of_this_api(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            minimal = {"model": "wan2.6-i2v", "input": {"img_url": PICTURE}}
            request = await told(served, minimal)
            assert request.pop("prompt")  # its page says that the prompt is optional
            assert request == {
                "image": PICTURE,
                "size": "1920*1080",
                "seconds": 5,
                "shot_type": "single",
                "seed": -1,
                "enable_prompt_expansion": True,
                "enable_safety_checker": True,
                "generate_audio": True,
            }
            done = await ended(served, minimal)
            assert done["output"]["orig_prompt"] == "" and done["usage"]["SR"] == 1080

    asyncio.run(line())


def test_references_and_text(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            done = await ended(served, REFERENCES)
            request: Any = served.backend.requests[done["output"]["task_id"]]
            assert request["references"] == REFERENCES["input"]["reference_urls"]
            assert (request["size"], request["aspect_ratio"]) == ("1280*720", "16:9")
            assert done["usage"]["size"] == "1280*720"
            portrait = {"parameters": {"size": "1248*1632", "shot_type": "multi"}}
            request = await told(served, sample("wan2.6-r2v-flash", **portrait))
            assert (request["size"], request["aspect_ratio"]) == ("1920*1080", "3:4")
            assert request["shot_type"] == "multi" and request["enable_prompt_expansion"]
            text = {"model": "wan2.6-t2v", "input": {"prompt": "A fox"}, "parameters": {}}
            request = await told(served, text)
            assert request["references"] == [] and "image" not in request

    asyncio.run(line())


def test_2_7_has_its_media_in_one_array(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            frames = [
                {"type": "first_frame", "url": PICTURE},
                {"type": "last_frame", "url": "https://example.com/end.png"},
                {"type": "driving_audio", "url": "https://example.com/a.mp3"},
            ]
            body = {"model": "wan2.7-i2v", "input": {"prompt": "Go", "media": frames}}
            request = await told(served, {**body, "parameters": {"duration": 7}})
            assert [request[name] for name in ("image", "last_image", "audio")] == [
                one["url"] for one in frames
            ]
            assert request["seconds"] == 7
            clip = {"type": "first_clip", "url": "https://example.com/a.mp4"}
            goes_on = {"model": "wan2.7-i2v", "input": {"prompt": "Go", "media": [clip]}}
            request = await told(served, {**goes_on, "parameters": {"duration": 12}})
            assert (request["first_clip"], request["seconds"]) == (clip["url"], 12)
            assert "image" not in request
            media = [
                {"type": "reference_image", "url": PICTURE, "reference_voice": "https://x.io/a"},
                {"type": "reference_video", "url": "https://example.com/ann.mp4"},
            ]
            body = {"model": "wan2.7-r2v", "input": {"prompt": "Go", "media": media}}
            done = await ended(served, {**body, "parameters": {"ratio": "9:16"}})
            request = served.backend.requests[done["output"]["task_id"]]  # type: ignore[assignment]
            assert request["references"] == [one["url"] for one in media]
            assert request["aspect_ratio"] == done["usage"]["ratio"] == "9:16"
            assert done["output"]["warnings"] == ["The voice of input.media[0] is not used"]

    asyncio.run(line())


def test_audio_false_wins_over_a_given_sound(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            silent = {
                "given": {"audio_url": "https://example.com/a.mp3"},
                "parameters": {"audio": False},
            }
            done = await ended(served, sample("wan2.6-i2v-flash", **silent))
            request: Any = served.backend.requests[done["output"]["task_id"]]
            assert request["audio"] is None and request["generate_audio"] is False
            assert done["usage"]["audio"] is False

    asyncio.run(line())


def test_bare_base64_from_a_client_is_accepted_as_a_picture(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            picture = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(60)).decode()
            request = await told(served, sample(given={"img_url": picture}))
            assert request["image"].startswith("data:application/octet-stream;base64,iVBOR")

    asyncio.run(line())


def test_a_watermark_is_accepted_with_a_warning_that_there_is_none(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            done = await ended(served, sample(parameters={"watermark": True}))
            assert done["output"]["warnings"] == ["watermark is ignored: this server draws none"]

    asyncio.run(line())


# --- errors --------------------------------------------------------------------------------------

SIZES = (
    "1280*720, 720*1280, 960*960, 1088*832, 832*1088, 1920*1080, 1080*1920, 1440*1440, "
    "1632*1248, 1248*1632"
)


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ([], "BadRequest.IllegalInput", "The input parameter requires json format."),
        (
            {"input": SAMPLE["input"]},
            "BadRequest.EmptyModel",
            'Required parameter "model" missing from request.',
        ),
        (
            {"model": "wan2.6-i2v"},
            "BadRequest.EmptyInput",
            "Required input parameter missing from request.",
        ),
        (sample("wan9-i2v"), "InvalidParameter", "Model not exist."),
        (
            sample(given={"img_url": None}),
            "InvalidParameter",
            "Field required: input.img_url",
        ),
        (
            sample("wan2.6-r2v", given={"reference_urls": None}),
            "InvalidParameter",
            "Field required: input.reference_urls",
        ),
        (
            sample("wan2.6-r2v", given={"prompt": None}),
            "InvalidParameter",
            "Field required: input.prompt",
        ),
        (
            sample("wan2.6-r2v", parameters={"size": "720P"}),
            "InvalidParameter",
            f"The size is not match {SIZES}",
        ),
        (
            sample(parameters={"duration": 1}),
            "InvalidParameter",
            'field "parameters.duration" must be an integer from 2 to 15, got number 1',
        ),
        (
            sample(parameters={"resolution": "480P"}),
            "InvalidParameter",
            'field "parameters.resolution" must be one of 720P, 1080P',
        ),
        (
            sample(parameters={"seed": -1}),
            "InvalidParameter",
            'field "parameters.seed" must be an integer from 0 to 2147483647',
        ),
        (
            sample(given={"img_url": "oss://mine/cat.png"}),
            "InvalidParameter",
            "Invalid image URL: it must start with http://, https:// or data:",
        ),
        (
            sample("wan2.7-i2v", given={"media": [{"type": "video", "url": PICTURE}]}),
            "InvalidParameter",
            'field "input.media[0].type" must be one of first_frame, last_frame, first_clip, '
            "driving_audio, reference_audio",
        ),
        (
            sample(
                "wan2.7-i2v",
                given={
                    "media": [
                        {"type": "first_frame", "url": PICTURE},
                        {"type": "first_clip", "url": PICTURE},
                    ]
                },
            ),
            "InvalidParameter",
            'field "input.media": a "first_clip" cannot be used with a "first_frame"',
        ),
        (
            sample("wan2.7-i2v", given={"media": [{"type": "first_frame", "url": PICTURE}] * 2}),
            "InvalidParameter",
            'field "input.media[1].type": "first_frame" may occur only once',
        ),
        (
            sample(parameters={"seed": 2**31}),
            "InvalidParameter",
            'field "parameters.seed" must be an integer from 0 to 2147483647',
        ),
        (
            sample(given={"last_image": PICTURE}),
            "InvalidParameter",
            'field "last_image" is not supported here: use "last_frame_url"',
        ),
        (
            sample(parameters={"loras": ["anna"]}),
            "InvalidParameter",
            'field "loras" is not supported here: leave it out',
        ),
        (
            sample(given={"template": "flying"}),
            "InvalidParameter",
            'field "input.template" is not supported here',
        ),
    ],
)
def test_a_wrong_request_is_refused_at_once(
    shared: Shared, body: object, code: str, message: str
) -> None:
    async def line() -> None:
        served = shared.served
        assert_failure(await create(served, body), 400, code, message)
        assert not served.backend.requests

    shared.run(line())


def test_a_synchronous_call_is_refused(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            sentence = "current user api does not support synchronous calls."
            answer = await served.http.post(CREATE, json=SAMPLE)
            assert_failure(answer, 403, "AccessDenied", sentence)

    asyncio.run(line())


def test_every_route_needs_a_key(serve: Serve) -> None:
    async def line() -> None:
        async with serve(api_keys={"ann": digest("ann")}) as served:
            answer = await create(served, SAMPLE)
            assert_failure(answer, 401, "InvalidApiKey", "No API-key provided.")
            answer = await create(served, SAMPLE, Authorization="Bearer bob")
            assert_failure(answer, 401, "InvalidApiKey", "Invalid API-key provided.")

    asyncio.run(line())


def test_without_a_reference_model_references_are_refused(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.models = {"image-to-video": "wan-tiny"}
            answer = await create(served, REFERENCES)
            assert_failure(answer, 400, "InvalidParameter", "Model not exist.")
            assert (await create(served, SAMPLE)).status_code == 200

    asyncio.run(line())


@pytest.mark.parametrize(
    ("fault", "code", "begins"),
    [
        ("invalid_media:Invalid image URL: the server answered 404", "InvalidURL", "The request"),
        ("invalid_media:Invalid audio URL: the file is not WAV or MP3", "InvalidURL", "Invalid au"),
        ("content_policy:Content policy: prompt was flagged", "DataInspectionFailed", "Input data"),
        ("content_policy:Content policy: video was flagged", "DataInspectionFailed", "Output data"),
        ("deadline_exceeded:It took too long", "InternalError.Timeout", "It took too long"),
        ("encode_failed:The clip was not made", "InternalError", "The clip was not made"),
    ],
)
def test_a_failed_task_has_the_api_s_code(serve: Serve, fault: str, code: str, begins: str) -> None:
    async def line() -> None:
        async with serve() as served:
            done = await ended(served, sample(given={"prompt": f"fail:{fault}"}))
            output = done["output"]
            assert (output["task_status"], output["code"]) == ("FAILED", code)
            assert output["message"].startswith(begins) and "usage" not in done

    asyncio.run(line())
