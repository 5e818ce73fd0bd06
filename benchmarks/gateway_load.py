"""Measures one gateway under many clients: how long `status` takes compared with a bare route, and
whether a job is lost.

The gateway is a separate process whose engine renders nothing. Each client submits its jobs one
after the other and polls the status once a second until it is final. With each poll it also calls
`/healthz`, which reads nothing, so that both are measured on the same machine at the same time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1]))  # if this file runs as a script

from benchmarks.services.gateway import free_port, gateway_process

BASE = "/v2/wan-2-6-i2v"
_REQUEST = {"input": {"prompt": "Leaves sway", "image": "https://example.com/picture.jpg"}}
_LONGEST_POLLS = 120


class Times:
    """The seconds of each call, by route."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"run": [], "status": [], "bare": []}

    async def ask(self, what: str, http: aiohttp.ClientSession, path: str, body: Any = None) -> Any:
        method = "GET" if body is None else "POST"
        begun = time.perf_counter()
        async with http.request(method, path, json=body) as answer:
            body = await answer.json()
            answer.raise_for_status()
        self.seconds[what].append(time.perf_counter() - begun)
        return body


async def client(http: aiohttp.ClientSession, jobs: int, poll_seconds: float, times: Times) -> int:
    """Run one client and return the number of its completed jobs."""
    await asyncio.sleep(random.uniform(0, poll_seconds))
    completed = 0
    for _ in range(jobs):
        job_id = (await times.ask("run", http, f"{BASE}/run", _REQUEST))["id"]
        for _ in range(_LONGEST_POLLS):
            await asyncio.sleep(poll_seconds)
            asked = [("status", f"{BASE}/status/{job_id}"), ("bare", "/healthz")]
            random.shuffle(asked)  # alternate, so that neither always gets the cold connection
            told = {what: await times.ask(what, http, path) for what, path in asked}
            if told["status"]["status"] not in ("IN_QUEUE", "IN_PROGRESS"):
                completed += told["status"]["status"] == "COMPLETED"
                break
    return completed


async def load(url: str, clients: int, jobs: int, poll_seconds: float) -> dict[str, Any]:
    times = Times()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector) as http:
        begun = time.perf_counter()
        each = [jobs // clients + (n < jobs % clients) for n in range(clients)]
        done = await asyncio.gather(*(client(http, n, poll_seconds, times) for n in each))
        seconds = time.perf_counter() - begun
    status, bare = (percentile(times.seconds[what], 99) for what in ("status", "bare"))
    return {
        "clients": clients,
        "jobs": jobs,
        "lost": jobs - sum(done),
        "seconds": round(seconds, 1),
        "status_p50_ms": round(percentile(times.seconds["status"], 50) * 1000, 2),
        "status_p99_ms": round(status * 1000, 2),
        "bare_p50_ms": round(percentile(times.seconds["bare"], 50) * 1000, 2),
        "bare_p99_ms": round(bare * 1000, 2),
        "p99_ratio": round(status / bare, 2),
        "run_p99_ms": round(percentile(times.seconds["run"], 99) * 1000, 2),
        "polls": len(times.seconds["status"]),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


def main(arguments: list[str] | None = None) -> None:
    example = "example: python benchmarks/gateway_load.py --clients 50 --jobs 2000"
    parser = argparse.ArgumentParser(description=__doc__, epilog=example)
    parser.add_argument("--clients", type=int, default=50, help="default 50")
    parser.add_argument(
        "--jobs", type=int, default=2000, help="of all clients together; default 2000"
    )
    parser.add_argument(
        "--poll-seconds", type=float, default=1.0, help="between two polls of a client; default 1"
    )
    asked = parser.parse_args(arguments)
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        gateway_process(Path(folder), port, WAN_CONNECTIONS_PER_ADDRESS="100000"),
    ):
        url = f"http://127.0.0.1:{port}"
        found = asyncio.run(load(url, asked.clients, asked.jobs, asked.poll_seconds))
    print(json.dumps(found))
    if found["lost"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
