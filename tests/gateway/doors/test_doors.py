"""One engine behind all doors: the same request gives the same clip, and each API has its own
defaults."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from tests.gateway.conftest import Serve, Served
from wan_engine.schema import Order, VideoRequest

PROMPT, IMAGE, SOUND = "Leaves sway", "https://example.com/a.png", "https://example.com/a.mp3"
RUNPOD = "/v2/wan-2-6-i2v/runsync"
AIML = "/v2/video/generations"
OXEN = "/api/ai/videos/generate"
DASHSCOPE = "/api/v1/services/aigc/video-generation/video-synthesis"
OPENAI = "/v1/videos"


async def rendered(served: Served, path: str, body: dict[str, Any]) -> Order:
    """The request that reaches the engine from a door."""
    before = set(served.backend.requests)
    answer = await served.http.post(path, json=body, headers={"X-DashScope-Async": "enable"})
    assert answer.status_code == 200, answer.text
    while not (new := set(served.backend.requests) - before):
        await asyncio.sleep(0.01)
    request: Any = served.backend.requests[new.pop()]
    return VideoRequest.parse(request).order()


def test_the_same_request_is_the_same_clip_at_every_door(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            runpod = await rendered(
                served,
                RUNPOD,
                {
                    "input": {
                        "prompt": PROMPT,
                        "image": IMAGE,
                        "audio": SOUND,
                        "size": "1920*1080",
                        "duration": 15,
                        "shot_type": "multi",
                        "seed": 42,
                        "negative_prompt": "blur",
                        "enable_prompt_expansion": True,
                    }
                },
            )
            same = {"prompt": PROMPT, "audio_url": SOUND, "resolution": "1080p", "seed": 42}
            same |= {"negative_prompt": "blur", "duration": 15}
            aiml = await rendered(
                served,
                AIML,
                {
                    **same,
                    "model": "alibaba/wan-2-6-i2v",
                    "image_url": IMAGE,
                    "shot_type": "multi",
                    "enhance_prompt": True,
                },
            )
            oxen = await rendered(
                served,
                OXEN,
                {
                    **same,
                    "model": "wan-v2-6-image-to-video",
                    "input_image": IMAGE,
                    "multi_shots": True,
                    "enable_prompt_expansion": True,
                },
            )
            dashscope = await rendered(
                served,
                DASHSCOPE,
                {
                    "model": "wan2.6-i2v",
                    "input": {
                        "prompt": PROMPT,
                        "negative_prompt": "blur",
                        "img_url": IMAGE,
                        "audio_url": SOUND,
                    },
                    "parameters": {
                        "resolution": "1080P",
                        "duration": 15,
                        "shot_type": "multi",
                        "seed": 42,
                    },
                },
            )
            openai = await rendered(
                served,
                OPENAI,
                {
                    "prompt": PROMPT,
                    "negative_prompt": "blur",
                    "input_reference": {"image_url": IMAGE},
                    "audio_reference": {"audio_url": SOUND},
                    "size": "1920x1080",
                    "seconds": "15",
                    "shot_type": "multi",
                    "seed": 42,
                    "enable_prompt_expansion": True,
                },
            )
            # With the caller's own sound, `sound` has no effect. One page accepts GIF.
            same_clip = {
                replace(order, sound=None, any_frames=False)
                for order in (runpod, aiml, oxen, dashscope, openai)
            }
            assert len(same_clip) == 1 and runpod.audio == SOUND

    asyncio.run(line())


def test_defaults_are_those_of_each_api(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            runpod = await rendered(served, RUNPOD, {"input": {"prompt": PROMPT, "image": IMAGE}})
            body = {"model": "alibaba/wan-2-6-i2v", "prompt": PROMPT, "image_url": IMAGE}
            aiml = await rendered(served, AIML, body)
            body = {"model": "wan-v2-6-image-to-video", "prompt": PROMPT, "input_image": IMAGE}
            oxen = await rendered(served, OXEN, body)
            given = {"prompt": PROMPT, "img_url": IMAGE}
            body = {"model": "wan2.6-i2v", "input": given}
            dashscope = await rendered(served, DASHSCOPE, body)
            body = {"prompt": PROMPT, "input_reference": {"image_url": IMAGE}}
            openai = await rendered(served, OPENAI, body)
            told = [
                (one.size, one.duration, one.expand_prompt, one.shot_type, one.seed)
                for one in (runpod, aiml, oxen, dashscope, openai)
            ]
            assert told == [
                ("1280*720", 5, False, "single", -1),
                ("1920*1080", 10, True, "single", -1),
                ("1920*1080", 5, True, "single", -1),
                ("1920*1080", 5, True, "single", -1),
                ("1280*720", 4, False, "single", -1),
            ]

    asyncio.run(line())


def test_a_slash_at_the_end_is_the_same_route_and_a_405_names_all_methods(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            for path, methods in (
                (AIML, "GET, POST"),
                ("/video/generations", "GET, POST"),
                ("/api/ai/queue", "GET, POST"),
                ("/api/ai/queue/none", "DELETE, GET"),
                ("/api/v1/tasks", "GET"),
                ("/v1/videos/none", "DELETE, GET"),
                ("/v2/wan-2-6-i2v/health", "GET"),
            ):
                for where in (path, f"{path}/"):
                    answer = await served.http.put(where)
                    assert (answer.status_code, answer.headers["allow"]) == (405, methods), where
            for path in ("/v2/wan-2-6-i2v/health/", "/api/ai/models/", "/v1/videos/"):
                assert (await served.http.get(path)).status_code == 200, path
            answer = await served.http.post(f"{OPENAI}/", json={"prompt": PROMPT})
            assert answer.status_code == 200
            for path in ("/v1/videos//", "/v2/wan-2-6-i2v/health//", "/healthz/"):
                assert (await served.http.get(path)).status_code == 404, path

    asyncio.run(line())
