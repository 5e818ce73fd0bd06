"""`/v1/videos` over HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from httpx import AsyncClient, Response
from PIL import Image

from benchmarks.services.instant import CLIP
from tests.gateway.conftest import Serve, Served, Shared, eventually
from tests.media.test_stills import small_clip
from wan_engine.control import Progress
from wan_engine.gateway.doors.openai import door as openai_door
from wan_engine.gateway.doors.openai.parameters import SIZES
from wan_engine.gateway.keys import digest
from wan_engine.media import ffmpeg

DOORS = (openai_door.door,)

PATH = "/v1/videos"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(60)
MP4 = b"\0\0\0\x18ftypmp42" + bytes(60)
KEYS = {name: digest(name) for name in ("ann", "bob")}


def uri(data: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"


async def ended(served: Served, video_id: str) -> dict[str, Any]:
    while True:
        answer = await served.http.get(f"{PATH}/{video_id}")
        body: dict[str, Any] = answer.json()
        if body["status"] not in ("queued", "in_progress"):
            assert "openai-poll-after-ms" not in answer.headers
            return body
        assert answer.headers["openai-poll-after-ms"] == "2000"
        await asyncio.sleep(0.01)


async def made(served: Served, **options: Any) -> dict[str, Any]:
    """A finished video, from `json`, or from `data` and `files` of a form."""
    answer = await served.http.post(PATH, **options)
    assert answer.status_code == 200, answer.text
    return await ended(served, answer.json()["id"])


async def told(served: Served, **options: Any) -> dict[str, Any]:
    """The request that reaches the engine."""
    request: Any = served.backend.requests[(await made(served, **options))["id"]]
    return {name: value for name, value in request.items() if value is not None}


def assert_failure(answer: Response, status: int, message: str, param: str | None = None) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["message"], error["param"]) == (status, message, param)
    assert set(error) == {"message", "type", "param", "code"}


# --- a video -------------------------------------------------------------------------------------


def test_a_video_goes_from_queued_to_its_content(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            body = {"prompt": "A fox", "seconds": "7", "size": "1280x720", "model": "mine"}
            video = (await served.http.post(PATH, json=body)).json()
            first = {
                "id": video["id"],
                "object": "video",
                "model": "mine",
                "status": "queued",
                "progress": 0,
                "created_at": video["created_at"],
                "completed_at": None,
                "expires_at": None,
                "error": None,
                "prompt": "A fox",
                "seconds": "7",
                "size": "1280x720",
                "remixed_from_video_id": None,
            }
            assert video == first
            content = f"{PATH}/{video['id']}/content"
            await eventually(lambda: served.backend.requests)
            answer = await served.http.get(content)
            sentence = f"The video is not ready yet: see GET {PATH}/{video['id']}"
            assert_failure(answer, 409, sentence)
            served.jobs.progress(video["id"], Progress("denoise", 2, 4))
            running = (await served.http.get(f"{PATH}/{video['id']}")).json()
            assert (running["status"], running["progress"]) == ("in_progress", 47)
            served.backend.release()
            done = await ended(served, video["id"])
            assert (done["status"], done["progress"]) == ("completed", 100)
            assert done["expires_at"] - done["completed_at"] == 7 * 86_400
            answer = await served.http.get(content)
            assert (answer.headers["content-type"], answer.content) == ("video/mp4", CLIP)
            part = await served.http.get(content, headers={"Range": "bytes=0-9"})
            assert (part.status_code, part.content) == (206, CLIP[:10])

    asyncio.run(line())


def test_pictures_of_a_video_are_served(serve: Serve, tmp_path: Path) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.clip = small_clip(tmp_path / "clip.mp4").read_bytes()
            video = await made(served, json={"prompt": "A fox", "seconds": "2"})
            for variant, kind in (("thumbnail", "webp"), ("spritesheet", "jpeg")):
                where = f"{PATH}/{video['id']}/content"
                answer = await served.http.get(where, params={"variant": variant})
                assert answer.headers["content-type"] == f"image/{kind}"
                assert Image.open(io.BytesIO(answer.content)).format == kind.upper()
            answer = await served.http.get(f"{PATH}/{video['id']}/content?variant=gif")
            assert answer.status_code == 400

    asyncio.run(line())


def test_pictures_are_made_one_at_a_time_and_not_for_callers_that_are_gone(
    listen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = small_clip(tmp_path / "clip.mp4").read_bytes()
    runs, go, program = tmp_path / "runs", tmp_path / "go", tmp_path / "ffmpeg"
    wait = (
        f'echo >> {runs}; while [ ! -e {go} ]; do sleep 0.02; done; exec {ffmpeg.executable()} "$@"'
    )
    program.write_text(f"#!/bin/sh\n{wait}\n")
    program.chmod(0o755)
    monkeypatch.setattr(ffmpeg, "executable", lambda: str(program))
    listening = listen()
    listening.backend.clip = clip

    async def line() -> None:
        async with AsyncClient(base_url=listening.url, timeout=30) as http:
            one = f"{PATH}/{(await http.post(PATH, json={'prompt': 'A fox'})).json()['id']}"
            while (await http.get(one)).json()["status"] != "completed":
                await asyncio.sleep(0.01)
            asked = f"{one}/content?variant=spritesheet"
            first = asyncio.create_task(http.get(asked))
            await eventually(runs.exists)
            for _ in range(4):
                gone = socket.create_connection((urlsplit(listening.url).hostname, port))
                gone.sendall(f"GET {asked} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
                await http.get(one)
                gone.close()
            last = asyncio.create_task(http.get(asked))
            for _ in range(2):
                await http.get(one)
            assert len(runs.read_text().splitlines()) == 1
            go.touch()
            assert [(await answer).status_code for answer in (first, last)] == [200, 200]
            assert len(runs.read_text().splitlines()) == 2

    port = urlsplit(listening.url).port
    asyncio.run(line())


def test_sync_answers_with_the_bytes(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            answer = await served.http.post(f"{PATH}/sync", data={"prompt": "A fox"})
            assert (answer.headers["content-type"], answer.content) == ("video/mp4", CLIP)
            assert answer.headers["x-request-id"] in served.backend.requests
            fault = "fail:invalid_media:Invalid image URL: the server answered 404"
            answer = await served.http.post(f"{PATH}/sync", data={"prompt": fault})
            assert_failure(answer, 400, "Invalid image URL: the server answered 404")
            answer = await served.http.post(f"{PATH}/sync", data={"prompt": "fail:disk_full:Full"})
            assert_failure(answer, 500, "Full")

    asyncio.run(line())


@pytest.mark.parametrize("query", ["", "?variant=thumbnail"])
def test_a_clip_that_goes_between_the_look_and_the_open_is_gone(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    async def line() -> None:
        async with serve() as served:
            video = await made(served, json={"prompt": "A fox"})
            job = await served.jobs.find("openai", "local", video["id"])
            assert job is not None
            path = served.gateway.context.links.path(job)
            assert path is not None
            path.unlink()
            answers = iter([True])  # as if it were there for the first look
            with monkeypatch.context() as patch:
                patch.setattr(Path, "is_file", lambda _path, **_: next(answers, False))
                answer = await served.http.get(f"{PATH}/{video['id']}/content{query}")
            assert answer.status_code == 410
            assert answer.json()["error"]["message"] == "The clip is no longer stored"

    asyncio.run(line())


def test_a_deleted_video_is_gone_with_its_file(serve: Serve, tmp_path: Path) -> None:
    async def line() -> None:
        async with serve() as served:
            video = await made(served, json={"prompt": "A fox"})
            files = list((tmp_path / "outputs").glob("*.mp4"))
            assert len(files) == 1
            one = f"{PATH}/{video['id']}"
            gone = {"id": video["id"], "object": "video.deleted", "deleted": True}
            assert (await served.http.delete(one)).json() == gone
            assert not files[0].exists()
            for answer in (
                await served.http.get(one),
                await served.http.get(f"{one}/content"),
                await served.http.delete(one),
            ):
                assert_failure(answer, 404, "You have no video with this id")
            assert await served.jobs.request(video["id"]) == {}
            running = (await served.http.post(PATH, json={"prompt": "hang"})).json()["id"]
            await eventually(lambda: running in served.backend.requests)
            assert (await served.http.delete(f"{PATH}/{running}")).json()["deleted"]
            await eventually(lambda: served.backend.stopped == [running])
            assert (await served.http.get(PATH)).json()["data"] == []

    asyncio.run(line())


def test_a_video_deleted_by_many_callers_at_once_is_subtracted_once(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            await made(served, json={"prompt": "A fox"})
            failed = await made(served, json={"prompt": "fail:disk_full:Full"})
            one = f"{PATH}/{failed['id']}"
            answers = await asyncio.gather(*(served.http.delete(one) for _ in range(5)))
            assert {answer.status_code for answer in answers} <= {200, 404}
            assert (await served.jobs.counts("openai"))[0] == {"completed": 1}
            assert served.jobs.unfruitful()["local"] == 0

    asyncio.run(line())


def test_videos_are_listed_a_page_at_a_time(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            empty = (await served.http.get(PATH)).json()
            assert empty == {
                "object": "list",
                "data": [],
                "first_id": None,
                "last_id": None,
                "has_more": False,
            }
            ids = [(await made(served, json={"prompt": "A fox"}))["id"] for _ in range(5)]

            async def page(**query: Any) -> tuple[list[str], bool]:
                body = (await served.http.get(PATH, params=query)).json()
                found = [video["id"] for video in body["data"]]
                assert (body["first_id"], body["last_id"]) == (found[0], found[-1])
                return found, body["has_more"]

            newest = ids[::-1]
            assert await page() == (newest, False)
            assert await page(limit=2) == (newest[:2], True)
            assert await page(limit=3, after=newest[1]) == (newest[2:], False)
            assert await page(order="asc", limit=2) == (ids[:2], True)
            assert await page(order="asc", limit=3, after=ids[1]) == (ids[2:], False)
            assert (await served.http.get(PATH, params={"after": "video_0"})).status_code == 404
            for way in ("asc", "desc"):
                assert await page(order=way, limit=3, after="") == await page(order=way, limit=3)
            for query in ({"limit": 0}, {"limit": 1000}, {"order": "up"}):
                assert (await served.http.get(PATH, params=query)).status_code == 400

    asyncio.run(line())


def test_videos_of_another_key_are_not_found(serve: Serve) -> None:
    async def line() -> None:
        async with serve(api_keys=KEYS) as served:
            served.http.headers["Authorization"] = "Bearer ann"
            video = await made(served, json={"prompt": "A fox"})
            bob = {"Authorization": "Bearer bob"}
            one = f"{PATH}/{video['id']}"
            for method, where in (("GET", one), ("GET", f"{one}/content"), ("DELETE", one)):
                answer = await served.http.request(method, where, headers=bob)
                assert_failure(answer, 404, "You have no video with this id")
            assert (await served.http.get(PATH, headers=bob)).json()["data"] == []
            after = {"after": video["id"]}
            assert (await served.http.get(PATH, params=after, headers=bob)).status_code == 404
            assert (await ended(served, video["id"]))["status"] == "completed"
            answer = await served.http.get(PATH, headers={"Authorization": "Bearer eve"})
            assert_failure(answer, 401, "Incorrect API key.")
            assert answer.json()["error"]["code"] == "invalid_api_key"

    asyncio.run(line())


def test_a_failed_video_says_why(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            fault = "fail:content_policy:Content policy: prompt was flagged"
            video = await made(served, json={"prompt": fault})
            assert video["status"] == "failed" and video["completed_at"] is None
            assert video["error"] == {
                "code": "moderation_blocked",
                "message": "Content policy: prompt was flagged",
            }
            answer = await served.http.get(f"{PATH}/{video['id']}/content")
            assert_failure(answer, 409, f"The video failed: see GET {PATH}/{video['id']}")

    asyncio.run(line())


# --- requests to the engine ----------------------------------------------------------------------


def test_the_engine_gets_the_defaults_of_this_api(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            video = await made(served, data={"prompt": "A fox"}, files={"none": (None, "")})
            assert (video["seconds"], video["size"], video["model"]) == (
                *("4", "720x1280"),
                "wan-2-6-t2v",
            )
            request: Any = served.backend.requests[video["id"]]
            assert {name: value for name, value in request.items() if value is not None} == {
                "prompt": "A fox",
                "references": [],
                "aspect_ratio": "9:16",
                "size": "1280*720",
                "seconds": 4,
                "generate_audio": True,
            }

    asyncio.run(line())


def test_a_form_and_json_are_the_same_request(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            fields = {
                "prompt": "A fox",
                "seconds": "9",
                "size": "1920x1080",
                "seed": 42,
                "negative_prompt": "blur",
                "generate_sound": False,
                "enable_prompt_expansion": True,
                "shot_type": "multi",
            }
            sound = {"audio_url": "https://example.com/a.mp3"}
            body = {
                **fields,
                "input_reference": {"image_url": uri(PNG)},
                "last_image": uri(MP4),
                "audio_reference": sound,
            }
            form = {
                name: str(value).lower() if isinstance(value, bool) else str(value)
                for name, value in fields.items()
            }
            form["audio_reference"] = json.dumps(sound)
            files = {"input_reference": ("a.png", PNG), "last_image": ("b.png", MP4)}
            by_json = await told(served, json=body)
            by_form = await told(served, data=form, files=files)
            assert by_form | {"seconds": 9, "seed": 42} == by_json | {"seconds": 9, "seed": 42}
            assert by_json["image"] == uri(PNG) and by_json["last_image"] == uri(MP4)
            assert by_json["audio"] == sound["audio_url"]
            assert by_json["generate_audio"] is False and by_json["size"] == "1920*1080"
            clip = {"prompt": "On", "first_clip": uri(MP4), "keep_first_clip": False}
            by_json = await told(served, json=clip)
            form = {"prompt": "On", "keep_first_clip": "false"}
            by_form = await told(served, data=form, files={"first_clip": ("a.mp4", MP4)})
            for request in (by_json, by_form):
                assert request["first_clip"] == uri(MP4) and request["keep_first_clip"] is False
                assert "image" not in request

    asyncio.run(line())


@pytest.mark.parametrize(
    "options",
    [
        {"data": {"input_reference": '{"image_url": "https://a.io/a.png"}'}},
        {"data": {"input_reference[image_url]": "https://a.io/a.png"}},
        {"data": {"input_reference": "https://a.io/a.png"}, "files": {"none": (None, "")}},
        {"data": {"input_reference[]": "https://a.io/a.png"}},
        {"data": {"image_reference": '{"image_url": "https://a.io/a.png"}'}},
        {"json": {"image_reference": {"image_url": {"url": "https://a.io/a.png"}}}},
    ],
)
def test_a_picture_is_accepted_in_every_form_that_clients_send(
    serve: Serve, options: dict[str, Any]
) -> None:
    async def line() -> None:
        async with serve() as served:
            options[next(iter(options))]["prompt"] = "A fox"
            assert (await told(served, **options))["image"] == "https://a.io/a.png"

    asyncio.run(line())


def test_videos_and_several_pictures_are_references(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            form = {"prompt": "A fox", "size": "1080x1920"}
            request = await told(served, data=form, files={"input_reference": ("a", MP4)})
            assert request["references"] == [uri(MP4)] and request["aspect_ratio"] == "9:16"
            files = [("input_reference", ("a", PNG)), ("input_reference", ("b", MP4))]
            request = await told(served, data=form, files=files)
            assert request["references"] == [uri(PNG), uri(MP4)]
            body = {"prompt": "A fox", "video_reference": {"video_url": "https://a.io/a.mp4"}}
            assert (await told(served, json=body))["references"] == ["https://a.io/a.mp4"]

    asyncio.run(line())


def test_frames_and_rate_become_seconds_and_unused_fields_are_reported(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            body = {"prompt": "A fox", "num_frames": 81, "fps": 16, "guidance_scale": 4.0}
            video = await made(served, json={**body, "width": 1280, "height": 720})
            assert (video["seconds"], video["size"]) == ("5", "1280x720")
            assert video["warnings"] == ["Not used here: fps, guidance_scale"]

    asyncio.run(line())


def test_loras_have_the_form_of_vllm_omni_or_are_a_list_of_names(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            for lora, loras in (
                ({"name": "anna", "scale": 0.8}, [{"name": "anna", "scale": 0.8}]),
                ({"adapter": "anna", "lora_scale": 0.8}, [{"name": "anna", "scale": 0.8}]),
                ([{"lora_name": "a"}, "b"], [{"name": "a"}, "b"]),
                ("people/anna", ["people/anna"]),
                ([], []),
            ):
                assert (await told(served, json={"prompt": "A fox", "lora": lora}))[
                    "loras"
                ] == loras
            form = {"prompt": "A fox", "lora": json.dumps({"name": "anna", "scale": 0.8})}
            assert (await told(served, data=form))["loras"] == [{"name": "anna", "scale": 0.8}]
            assert "loras" not in await told(served, json={"prompt": "A fox"})

    asyncio.run(line())


# --- errors --------------------------------------------------------------------------------------

KEPT = 'field "keep_first_clip" needs field "first_clip"'


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ([], None, "The body must be a JSON object or a form"),
        ({}, "prompt", 'field "prompt" is required'),
        (
            {"seconds": "16"},
            "seconds",
            'field "seconds" must be an integer from 2 to 15, got string "16"',
        ),
        ({"size": "640x480"}, "size", f'field "size" must be one of {", ".join(SIZES)}'),
        (
            {"loras": ["anna"]},
            "loras",
            'field "loras" is not supported here: use "lora"',
        ),
        ({"keep_first_clip": True}, "keep_first_clip", KEPT),
        ({"model": "x" * 65}, "model", 'field "model" must be a string of up to 64 characters'),
        (
            {"lora": {"name": "x", "local_path": "/loras/x", "scale": 1.0}},
            "lora",
            'field "lora[0]" must have name, scale, expert and nothing else, '
            'got string "local_path"',
        ),
        (
            {"lora": {"name": "x", "lora_name": "y"}},
            "lora",
            'field "lora[0]" must have name, scale, expert and nothing else, '
            'got string "lora_name"',
        ),
        (
            {"lora": [{"name": "x"}, {"name": "../y"}]},
            "lora",
            'field "lora[1].name" must be a name without its folder\'s path, such as style or '
            'people/anna, got string "../y"',
        ),
        ({"lora": {"scale": 1}}, "lora", 'field "lora[0].name" is required'),
        (
            {"input_reference": {"file_id": "file-1"}},
            "input_reference",
            'field "input_reference": there are no files here, send "image_url" or the file itself',
        ),
        (
            {"input_reference": {"image_url": "file:///etc/passwd"}},
            "input_reference",
            "Invalid input_reference URL: it must start with http://, https:// or data:",
        ),
        (
            {"input_reference": 5},
            "input_reference",
            'field "input_reference" must be a string, got number 5',
        ),
        (
            {"last_image": "https://a.io/a.png"},
            "last_image",
            'field "last_image" needs one picture in "input_reference"',
        ),
        (
            {"num_frames": 90, "fps": 16},
            "num_frames",
            'field "num_frames" must be whole seconds at "fps": or say "seconds"',
        ),
        (
            {"generate_sound": "loud"},
            "generate_sound",
            'field "generate_sound" must be a boolean, got string "loud"',
        ),
    ],
)
def test_a_wrong_request_is_refused_at_once(
    shared: Shared, body: Any, param: str | None, message: str
) -> None:
    async def line() -> None:
        served = shared.served
        full = {"prompt": "A fox", **body} if body else body
        assert_failure(await served.http.post(PATH, json=full), 400, message, param)
        assert not served.backend.requests

    shared.run(line())


def test_a_broken_form_is_refused(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            headers = {"Content-Type": "multipart/form-data; boundary=x"}
            answer = await served.http.post(PATH, content=b"--x\r\n", headers=headers)
            assert_failure(answer, 400, "The body is not a valid form")

    asyncio.run(line())


@pytest.mark.parametrize("field", ["image", "prompt", "extra_params", "size"])
def test_a_file_in_a_text_field_is_refused(serve: Serve, field: str) -> None:
    async def line() -> None:
        async with serve() as served:
            answer = await served.http.post(
                PATH, data={"negative_prompt": "x"}, files={field: ("a.png", PNG)}
            )
            assert_failure(answer, 400, f'field "{field}" must not be a file', field)
            assert not served.backend.requests

    asyncio.run(line())


def test_jobs_are_counted_by_our_model_names_and_not_by_those_that_callers_send(
    serve: Serve,
) -> None:
    async def line() -> None:
        async with serve() as served:
            for name in ("mine", "a\0b"):  # Postgres accepts no NUL in a text
                assert (await made(served, json={"prompt": "A", "model": name}))["model"] == name
            groups = served.jobs.counts("openai", None, "wan-2-6-t2v")
            assert (await groups)[0] == {"completed": 2}

    asyncio.run(line())


def test_without_a_model_for_text_a_picture_is_needed(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.models = {"image-to-video": "wan-tiny"}
            answer = await served.http.post(PATH, json={"prompt": "A fox"})
            sentence = "No model is configured for reference-to-video"
            assert_failure(answer, 400, sentence, "model")
            body = {"prompt": "A fox", "input_reference": "https://a.io/a.png"}
            assert (await served.http.post(PATH, json=body)).status_code == 200

    asyncio.run(line())


# --- limits of a form ----------------------------------------------------------------------------


def test_a_form_has_the_limits_of_any_body(serve: Serve, tmp_path: Path) -> None:
    async def line() -> None:
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        limits: dict[str, Any] = {
            "request_max_bytes": 3 * 2**20,
            "media_max_bytes": 3 * 2**20,
            "scratch_dir": scratch,
        }
        async with serve(api_keys=KEYS, **limits) as served:
            served.http.headers["Authorization"] = "Bearer ann"
            large = {"input_reference": ("a.png", PNG + bytes(4 * 2**20))}
            answer = await served.http.post(PATH, data={"prompt": "A fox"}, files=large)
            assert_failure(answer, 413, "The body is larger than 3 MB")
            fitting = {"input_reference": ("a.png", PNG + bytes(2 * 2**20))}
            request = await told(served, data={"prompt": "A fox"}, files=fitting)
            assert request["image"] == uri(PNG + bytes(2 * 2**20))
            served.backend.hold()
            kept = {"input_reference": ("a.png", PNG + bytes(2**20))}
            for status in (200, 429):  # waiting jobs fill the quota of the key
                answer = await served.http.post(PATH, data={"prompt": "hang"}, files=kept)
                kept = {"input_reference": ("a.png", PNG + bytes(2 * 2**20) + b"1")}
                assert answer.status_code == status, answer.text
            assert list(scratch.iterdir()) == []

    asyncio.run(line())
