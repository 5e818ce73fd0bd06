"""One engine behind all doors: the same request is the same clip, and what is not said differs."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.gateway.conftest import Serve, Served
from wan_engine.schema import VideoRequest

PROMPT, IMAGE, SOUND = "Leaves sway", "https://example.com/a.png", "https://example.com/a.mp3"
RUNPOD = "/v2/wan-2-6-i2v/runsync"
AIML = "/v2/video/generations"
OXEN = "/api/ai/videos/generate"


async def rendered(served: Served, path: str, body: dict[str, Any]) -> VideoRequest:
    """What the engine is told of a request that is sent to a door."""
    before = set(served.backend.requests)
    answer = await served.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    while not (new := set(served.backend.requests) - before):
        await asyncio.sleep(0.01)
    request: Any = served.backend.requests[new.pop()]
    return VideoRequest.parse(request)


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
            assert runpod == aiml == oxen.model_copy(update={"first_frame": False})

    asyncio.run(line())


def test_what_is_not_said_is_as_each_api_has_it(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            runpod = await rendered(served, RUNPOD, {"input": {"prompt": PROMPT, "image": IMAGE}})
            body = {"model": "alibaba/wan-2-6-i2v", "prompt": PROMPT, "image_url": IMAGE}
            aiml = await rendered(served, AIML, body)
            body = {"model": "wan-v2-6-image-to-video", "prompt": PROMPT, "input_image": IMAGE}
            oxen = await rendered(served, OXEN, body)
            told = [
                (one.size, one.duration, one.enable_prompt_expansion, one.shot_type, one.seed)
                for one in (runpod, aiml, oxen)
            ]
            assert told == [
                ("1280*720", 5, False, "single", -1),
                ("1920*1080", 10, True, "single", -1),
                ("1920*1080", 5, True, "single", -1),
            ]

    asyncio.run(line())
