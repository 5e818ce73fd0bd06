"""The packages for DashScope's API and `/v1/videos`, unchanged except for host and key, against a
local gateway.

The programs are in `tests/data/clients`. The README says what to replace in them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.services.instant import CLIP
from tests.gateway.conftest import Listening
from tests.gateway.test_clients import ENTRY, NODE_PACKAGES, assert_clip, python, run, sample
from tests.media.test_stills import small_clip

Listen = Callable[..., Listening]


def request_of(here: Listening, prompt: str) -> dict[str, Any]:
    """What the engine received for this prompt."""
    found: list[Any] = [one for one in here.backend.requests.values() if prompt in str(one)]
    assert len(found) == 1, prompt
    return {name: value for name, value in found[0].items() if value is not None}


@pytest.mark.system
def test_dashscope_s_python_client(listen: Listen, tmp_path: Path) -> None:
    here = listen(api_keys=ENTRY)
    found = json.loads(python(sample("dashscope.py", here.url), tmp_path))
    call = found["call"]
    assert (call["status_code"], call["output"]["task_status"]) == (200, "SUCCEEDED")
    assert (call["usage"]["duration"], call["usage"]["SR"]) == (5, 720)
    assert call["output"]["orig_prompt"] == "The cat runs across the grass."
    assert_clip(call["output"]["video_url"])
    assert found["created"] == {"status_code": 200, "status": "PENDING"}
    assert found["waited"]["task_status"] == found["fetched"]["task_status"] == "SUCCEEDED"
    assert found["cancelled"] == {"status_code": 400, "code": "UnsupportedOperation"}
    assert (found["listed"]["total"], len(found["listed"]["data"])) == (3, 1)
    assert found["references"]["usage"]["size"] == "1280*720"
    assert (found["text"]["usage"]["size"], found["text"]["usage"]["duration"]) == ("1080*1920", 15)
    assert (found["wrong"]["status_code"], found["wrong"]["code"]) == (400, "InvalidParameter")
    assert found["failed"]["code"] == "InvalidURL"
    frames = request_of(here, "'Go'")
    assert frames["image"] == frames["last_image"] and frames["seconds"] == 7
    assert found["goes_on"]["status"] == "SUCCEEDED"
    assert found["goes_on"]["usage"]["duration"] == 12
    goes_on = request_of(here, "On it goes")
    assert goes_on["first_clip"] == "https://example.com/clip.mp4" and "image" not in goes_on
    assert goes_on["last_image"] == frames["last_image"]
    assert request_of(here, "A fox")["aspect_ratio"] == "9:16"


@pytest.mark.system
def test_dashscope_s_client_of_the_ai_sdk(listen: Listen, tmp_path: Path) -> None:
    assert (NODE_PACKAGES / "@ai-sdk/alibaba").is_dir(), "npm ci --prefix tests/system"
    (tmp_path / "node_modules").symlink_to(NODE_PACKAGES)
    here = listen(api_keys=ENTRY)
    printed = run(["node"], sample("dashscope_ai_sdk.js", here.url), tmp_path, ".mjs")
    found = json.loads(printed.splitlines()[-1])
    assert [found[name]["bytes"] for name in ("i2v", "r2v", "t2v")] == [len(CLIP)] * 3
    assert_clip(found["i2v"]["about"]["videoUrl"])
    usage = found["i2v"]["about"]["usage"]
    assert (usage["duration"], usage["resolution"]) == (5, 720)
    animated = request_of(here, "The cat runs")
    assert animated["image"].startswith("data:application/octet-stream;base64,iVBORw0KGgo")
    assert (animated["size"], animated["shot_type"]) == ("1280*720", "multi")
    assert request_of(here, "character1 waves")["generate_audio"] is False
    fox = request_of(here, "A fox")
    assert (fox["seconds"], fox["aspect_ratio"]) == (3, "9:16")
    assert "Input data may contain inappropriate content." in found["failed"]
    assert '"parameters.duration" must be an integer from 2 to 15' in found["wrong"]


@pytest.mark.system
def test_openai_s_python_client(listen: Listen, tmp_path: Path) -> None:
    here = listen(api_keys=ENTRY)
    here.backend.clip = small_clip(tmp_path / "small.mp4").read_bytes()
    found = json.loads(python(sample("openai.py", here.url), tmp_path))
    video = found["video"]
    assert (video["status"], video["progress"], video["model"]) == ("completed", 100, "sora-2")
    assert (video["seconds"], video["size"], video["prompt"]) == ("8", "1280x720", "The cat runs")
    assert found["bytes"] == len(here.backend.clip)
    assert (found["thumbnail"], found["spritesheet"]) == ("image/webp", "image/jpeg")
    assert (found["text"]["seconds"], found["text"]["size"]) == ("4", "720x1280")
    assert found["listed"] == found["made"]
    assert "alibaba/wan-2-6-i2v" in found["models"]
    assert (found["failed"]["status"], found["failed"]["error"]["code"]) == (
        "failed",
        "moderation_blocked",
    )
    assert found["deleted"] == {"id": video["id"], "deleted": True, "object": "video.deleted"}
    assert found["gone"]["status"] == 404
    assert (found["wrong"]["status"], found["wrong"]["body"]["param"]) == (400, "seconds")
    cat = request_of(here, "The cat runs")
    assert cat["image"].startswith("data:application/octet-stream;base64,iVBORw0KGgo")
    fox = request_of(here, "A fox")
    assert (fox["references"], int(fox["seed"]), fox["negative_prompt"]) == ([], 42, "blur")
    assert request_of(here, "Leaves sway")["image"] == "https://example.com/a.jpg"


@pytest.mark.system
def test_litellm_s_hosted_vllm(listen: Listen, tmp_path: Path) -> None:
    here = listen(api_keys=ENTRY)
    text = sample("litellm.py", here.url)
    printed = python(text, tmp_path, LITELLM_LOCAL_MODEL_COST_MAP="True")
    found = json.loads(printed.splitlines()[-1])
    video = found["video"]
    assert (video["status"], video["seconds"], video["size"]) == ("completed", "8", "1280x720")
    assert found["bytes"] == len(CLIP)
    assert found["text"]["size"] == "1920x1080" and found["linked"]["status"] == "completed"
    assert found["listed"] == ["Leaves sway", "A fox", "The cat runs"]
    assert found["failed"]["error"] == {
        "code": "invalid_media",
        "message": "Invalid image URL: no",
    }
    cat = request_of(here, "The cat runs")
    assert cat["image"].startswith("data:application/octet-stream;base64,iVBORw0KGgo")
    assert int(cat["seed"]) == 42
    assert request_of(here, "A fox")["references"] == []
