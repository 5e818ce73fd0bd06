"""Runpod's endpoint API over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.gateway.conftest import Serve, Served, wish

BASE = "/v2/wan-2-6-i2v"


async def until_final(served: Served, job_id: str) -> dict[str, Any]:
    for _ in range(200):
        body = (await served.http.get(f"{BASE}/status/{job_id}")).json()
        if body["status"] not in ("IN_QUEUE", "IN_PROGRESS"):
            return body
        await asyncio.sleep(0.01)
    raise AssertionError(body)


def test_a_job_goes_from_the_queue_to_its_clip(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            answer = await served.http.post(f"{BASE}/run", json={"input": wish()})
            assert answer.status_code == 200
            assert answer.json() == {"id": answer.json()["id"], "status": "IN_QUEUE"}
            body = await until_final(served, answer.json()["id"])
            assert body["status"] == "COMPLETED"
            clip = await served.http.get(body["output"]["video_url"])
            assert clip.status_code == 200 and clip.headers["content-type"] == "video/mp4"

    asyncio.run(line())
