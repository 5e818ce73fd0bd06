"""Measures the jobs per minute of one worker behind a slow network: one job at a time, and with
WAN_PREFETCH=1.

It runs the real worker loop on `wan-tiny`, with a local control plane, an image server that waits
before it answers, and a bucket that waits before it accepts a clip. `device_idle_share` is the
share of the time, from the first job taken to the last result, in which no job had the device. It
adds up the stages in the log, which are rounded to a tenth of a second.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).parents[1]))  # if this file runs as a script

from benchmarks.services.bucket import Bucket, opened_bucket
from benchmarks.services.control_plane import ControlPlane
from benchmarks.services.faults import Fault, Request
from benchmarks.services.processes import ROOT
from benchmarks.services.worker import worker_process

MODES = {"serial": "0", "prefetch": "1"}
"""Values of WAN_PREFETCH."""

_BESIDE = ("prepare", "expand", "queue", "publish")
"""Stages in which a job does not have the device."""


@contextmanager
def image_server(photo: Path, seconds: float) -> Iterator[str]:
    """The URL of a picture that arrives after `seconds`."""
    data = photo.read_bytes()

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(seconds)
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/photo.jpg"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def slow_uploads(bucket: Bucket, seconds: float) -> None:
    """Make the bucket wait before it accepts a clip. Its answers are passed on whole."""

    def takes_a_clip(request: Request) -> bool:
        return request.method == "PUT" and ".mp4" in request.target

    wait = Fault(
        "wait",
        times=sys.maxsize,
        when=takes_a_clip,
        then=lambda: time.sleep(seconds),
        after_bytes=sys.maxsize,
    )
    bucket.proxy.inject(wait)


def device_seconds(log: str) -> float:
    """Seconds in which jobs had the device, from each job's summary line in a worker's log."""
    lines = re.findall(r"; ((?:\w+ [\d.]+s ?)+); peak memory", log)
    stages = [stage.split() for line in lines for stage in re.findall(r"\w+ [\d.]+", line)]
    return sum(float(took) for name, took in stages if name not in _BESIDE)


def measure(
    mode: str,
    jobs: int,
    delay_seconds: float,
    bucket: Bucket,
    duration: int = 5,
    worker: Callable[..., AbstractContextManager[object]] = worker_process,
) -> dict[str, Any]:
    """Run `jobs` clips of `duration` seconds, which all wait when `worker` starts."""
    photo = ROOT / "tests" / "data" / "rocket_640x360.jpg"
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        image_server(photo, delay_seconds) as url,
        ControlPlane() as plane,
    ):
        names = [f"{uuid4().hex}-{number}" for number in range(jobs)]  # no known id
        for name in names:
            request = {"prompt": "lift-off", "image": url, "duration": duration, "seed": 1}
            plane.submit(name, request)
        settings = {
            **bucket.settings(),
            "WAN_PREFETCH": MODES[mode],
            "WAN_SAFETY": "off",
            "WAN_ALLOW_PRIVATE_URLS": "1",
        }
        home = Path(folder) / "worker"
        with worker(plane, home, **settings):
            plane.wait_until(lambda: bool(plane.taken), seconds=120)
            begun = time.monotonic()
            results = [plane.result(name, seconds=300) for name in names]
            seconds = time.monotonic() - begun
            assert all("output" in result for result in results), results
            device = device_seconds((home / "worker.log").read_text())
    return {
        "mode": mode,
        "jobs": jobs,
        "duration": duration,
        "delay_seconds": delay_seconds,
        "seconds": round(seconds, 2),
        "jobs_per_minute": round(60 * jobs / seconds, 2),
        "device_seconds": round(device, 1),
        "device_idle_share": round(1 - device / seconds, 3),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python benchmarks/overlap.py --jobs 8 --delay 2",
    )
    parser.add_argument("--jobs", type=int, default=8, help="jobs of each mode; default 8")
    parser.add_argument(
        "--delay", type=float, default=2, help="seconds of each fetch and upload; default 2"
    )
    parser.add_argument(
        "--duration", type=int, default=5, choices=(5, 10, 15), help="seconds of a clip"
    )
    parser.add_argument("--repeats", type=int, default=1, help="turns of both modes; default 1")
    given = parser.parse_args(arguments)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # one line per request to the bucket
    print(json.dumps({"python": platform.python_version(), "machine": platform.machine()}))
    with opened_bucket() as bucket:
        slow_uploads(bucket, given.delay)
        for _ in range(given.repeats):
            for mode in MODES:
                line = measure(mode, given.jobs, given.delay, bucket, given.duration)
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
