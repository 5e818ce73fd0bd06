"""The real engine in its process, on the tiny model: from HTTP to an mp4."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE

import httpx

from tests.gateway.conftest import wish
from tests.gateway.test_lora_names import lora
from wan_engine.gateway.app import create_app, open_gateway
from wan_engine.media.fetch import data_uri
from wan_engine.settings import Settings

BASE = "/v2/wan-2-6-i2v"


def test_a_clip_is_rendered_stopped_and_rendered_again(
    make_settings: Callable[..., Settings], data: Path, tmp_path: Path
) -> None:
    lora(tmp_path / "loras" / "people" / "anna.safetensors")
    lora(tmp_path / "loras" / "other.safetensors", width=48)
    short = {"render_area": 4096, "preset": "superfast", "safety": "off"}
    settings = make_settings(**short, lora_dir=tmp_path / "loras")
    request = wish(image=data_uri(data / "rocket_640x360.jpg"), seed=3)

    async def line() -> None:
        async with open_gateway(settings) as gateway:
            transport = httpx.ASGITransport(create_app(gateway))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                hopeless = wish(image="data:image/png;base64,AAAA")
                bad = await http.post(f"{BASE}/runsync", json={"input": hopeless}, timeout=120)
                assert bad.status_code == 400
                assert bad.json()["error"].startswith("Invalid image URL: ")
                told = (await http.get("/playground/api/server")).json()
                assert told["loras"] == {"image-to-video": ["people/anna"]}

                stopped = (await http.post(f"{BASE}/run", json={"input": request})).json()["id"]
                await in_stage(http, stopped, "denoise", "decode", "encode")
                body = (await http.post(f"{BASE}/cancel/{stopped}")).json()
                assert body["status"] == "CANCELLED"

                done = await http.post(f"{BASE}/runsync", json={"input": request}, timeout=120)
                body = done.json()
                assert (done.status_code, body["status"]) == (200, "COMPLETED")
                assert body["output"]["seed"] == 3 and body["output"]["cost"] == 0.5
                assert body["output"]["warnings"]
                clip = await http.get(body["output"]["video_url"])
                assert clip.content[4:8] == b"ftyp"
                metrics = (await http.get("/metrics")).text
                assert 'wan_stage_seconds_count{stage="denoise"} 1.0' in metrics

    asyncio.run(line())


async def in_stage(http: httpx.AsyncClient, job_id: str, *stages: str) -> None:
    for _ in range(2000):
        body = (await http.get(f"{BASE}/status/{job_id}")).json()
        if body.get("output", {}).get("stage") in stages:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(body)


def test_a_process_that_cannot_start_names_everything_that_is_missing(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    absent = {"scratch_dir": tmp_path / "absent", "output_dir": Path("/proc/x")}
    settings = make_settings(**absent).with_secrets()
    command = [sys.executable, "-m", "wan_engine.gateway.backends.engine_process"]
    with subprocess.Popen(
        command, stdin=PIPE, stdout=PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({"settings": settings}) + "\n")
        process.stdin.flush()
        lines = map(json.loads, process.stdout)
        told = next(line for line in lines if line["told"] != "alive")
        assert (process.wait(20), told["told"]) == (1, "unusable")
    assert "- scratch: " in told["error"] and "- storage: " in told["error"]
