"""Two hundred jobs on one worker, with random cancels, hostile requests and faults: nothing is
lost, and nothing grows. `make soak` runs it and prints the figures."""

from __future__ import annotations

import json
import random
import urllib.request
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.services.bucket import Bucket
from benchmarks.services.control_plane import ControlPlane
from benchmarks.services.faults import Fault
from tests.hostile import hostile_inputs, listening
from tests.worker_loop.worker import Figures, Worker, started

JOBS = 200
_WARM_JOBS = 20  # libraries fill their caches until then
_STAGES = ("prepare", "denoise", "decode", "encode", "publish")
_KINDS = {"good": 8, "cancelled": 4, "hostile": 4, "result fault": 2, "bucket fault": 2}


class Soak:
    """Sends jobs of every kind and keeps count."""

    def __init__(self, plane: ControlPlane, worker: Worker, bucket: Bucket, seed: int) -> None:
        self.plane = plane
        self.worker = worker
        self.bucket = bucket
        self.random = random.Random(seed)
        self.sent: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.finished: dict[str, str] = {}
        self.lost: list[str] = []

    def send(self, kind: str, job_id: str, payload: Any) -> None:
        self.sent[kind] += 1
        getattr(self, f"_{kind.replace(' ', '_')}")(job_id, payload)

    def _good(self, job_id: str, payload: Any) -> None:
        self.plane.submit(job_id, payload)
        self._must_give_a_clip(job_id, self.plane.result(job_id))

    def _hostile(self, job_id: str, payload: Any) -> None:
        self.plane.submit(job_id, payload)
        assert "error" in self.plane.result(job_id)

    def _cancelled(self, job_id: str, payload: Any) -> None:
        stage = self.random.choice(_STAGES)
        self.plane.submit(job_id, payload)
        posts = self.plane.posts[job_id]

        def is_there() -> bool:
            stages = [_STAGES.index(item["stage"]) for item in posts.progress]
            return bool(posts.results) or any(found >= _STAGES.index(stage) for found in stages)

        self.plane.wait_until(is_there, seconds=60)
        self.plane.stop(job_id)
        self.faults["cancel"] += 1

    def _result_fault(self, job_id: str, payload: Any) -> None:
        fault = self.random.choice([500, 503, "drop"])
        self.plane.faults.append(fault)
        self.faults[f"result post: {fault}"] += 1
        self._good(job_id, payload)

    def _bucket_fault(self, job_id: str, payload: Any) -> None:
        kind = self.random.choice(["answer", "reset-body", "reset-answer", "half-answer", "away"])
        self.faults[f"bucket: {kind}"] += 1
        away = Fault("answer", times=10**6, status=503, code="SlowDown")
        short = Fault(kind, times=2, when=lambda request: request.method == "PUT", after_bytes=100)
        self.bucket.proxy.inject(away if kind == "away" else short)
        self.plane.submit(job_id, payload)
        result = self.plane.result(job_id)
        self.bucket.proxy.mend()
        if kind == "away":
            assert "it is kept" in result["error"], result
            self.plane.posts[job_id].results.clear()
            self.plane.submit(job_id, payload)  # as the platform does with a retry of a failed job
            result = self.plane.result(job_id)
        self._must_give_a_clip(job_id, result)

    def _must_give_a_clip(self, job_id: str, result: dict[str, Any]) -> None:
        url = result.get("output", {}).get("video_url")
        if url is None:
            self.lost.append(f"{job_id}: {result}")
            return
        with urllib.request.urlopen(url) as answer:
            body = answer.read()
        if body[4:8] != b"ftyp":
            self.lost.append(f"{job_id}: no mp4 behind its URL")
        self.finished[job_id] = url


@pytest.mark.slow
def test_two_hundred_jobs_lose_nothing_and_leave_nothing(
    bucket: Bucket, good: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**bucket.settings(), "WAN_SPOOL_DIR": str(tmp_path / "spool")}
    settings |= {"WAN_RENDER_AREA": "1024"}
    with (
        listening() as listener,
        ControlPlane() as plane,
        started(plane, tmp_path / "worker", whole=True, **settings) as worker,
    ):
        soak = Soak(plane, worker, bucket, seed=2026)
        hostile = [payload for _, payload in hostile_inputs(good, listener.port)]
        first: Figures | None = None
        for number in range(JOBS):
            kind = soak.random.choices(list(_KINDS), list(_KINDS.values()))[0]
            payload = soak.random.choice(hostile) if kind == "hostile" else good
            if kind == "hostile" and not payload:
                payload = {"x": 1}  # the platform itself drops an empty input
            soak.send(kind, f"job-{number}", payload)
            if number + 1 == _WARM_JOBS:
                first = worker.figures()
        soak.send("good", "job-last", good)
        last = worker.figures()
        assert first is not None
        alive = worker.process.poll() is None
        figures = {
            "jobs_sent": sum(soak.sent.values()),
            "sent": soak.sent,
            "faults_injected": soak.faults,
            "clips_finished": len(soak.finished),
            "results_lost": len(soak.lost),
            "crashes": 0 if alive else 1,
            "private_fetches": listener.visits,
            f"after_{_WARM_JOBS}_jobs": asdict(first),
            "at_the_end": asdict(last),
            "peak_memory_mb": worker.peak_memory_mb(),
        }
        with capsys.disabled():
            print("\n" + json.dumps(figures, indent=2))
        assert soak.lost == [] and alive and listener.visits == 0
        assert worker.scratch() == []
        assert last.memory_mb <= first.memory_mb * 1.1 + 32
        assert last.threads <= first.threads + 2
        assert last.descriptors <= first.descriptors + 4
        assert last.files <= first.files
        assert list((tmp_path / "spool").rglob("*.mp4")) == []
