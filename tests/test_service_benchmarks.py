"""The benchmarks of the worker loop and of the gateway run. No test checks times."""

from __future__ import annotations

import json

import pytest

from benchmarks import gateway_hostile, gateway_load, overlap
from benchmarks.services.bucket import opened_bucket
from tests.worker_loop.worker import started


def test_the_device_is_busy_in_the_stages_that_need_it() -> None:
    stages = "prepare 2.1s queue 3.0s load 0.0s denoise 1.5s decode 0.7s encode 0.3s publish 2.0s"
    lines = [f'"job {name}: 1280*720 5s seed 1; {stages}; peak memory 1 MB"' for name in "ab"]
    assert overlap.device_seconds("\n".join([*lines, "another line"])) == pytest.approx(5.0)


def test_jobs_behind_a_slow_network_are_measured_in_the_real_loop() -> None:
    with opened_bucket() as bucket:
        overlap.slow_uploads(bucket, 0.2)
        line = overlap.measure("prefetch", 2, 0.2, bucket, worker=started)
    assert line["jobs_per_minute"] > 0 and 0 < line["device_seconds"] < line["seconds"]
    assert bucket.proxy.injected["wait"] == 2


def test_a_load_on_the_gateway_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    gateway_load.main(["--clients", "4", "--jobs", "20", "--poll-seconds", "0.02"])
    line = json.loads(capsys.readouterr().out)
    assert (line["jobs"], line["lost"]) == (20, 0) and line["polls"] >= 20
    assert min(line["status_p50_ms"], line["bare_p50_ms"], line["p99_ratio"]) > 0


def test_a_hostile_caller_is_refused_and_others_are_answered(
    capsys: pytest.CaptureFixture[str],
) -> None:
    gateway_hostile.main(["400 MB of trailers"])
    line = json.loads(capsys.readouterr().out)
    # A caller that does not stop sending may see the reset before the answer.
    assert line["answers"] in ({"431": 1}, {"cut": 1})
    assert (line["healthz_failed"], line["tracebacks"]) == ({}, 0) and line["healthz"] > 0
