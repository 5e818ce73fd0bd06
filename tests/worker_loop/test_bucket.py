"""Workers that store in a bucket, as in production: the bucket unreachable, jobs stopped in every
stage, workers killed, and refusals to start."""

from __future__ import annotations

import re
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from benchmarks.services.bucket import Bucket
from benchmarks.services.control_plane import ControlPlane
from benchmarks.services.faults import Fault
from tests.worker_loop.worker import Worker, started
from wan_engine.media import ffmpeg


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        yield plane


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bucket")


@pytest.fixture(scope="module")
def worker(plane: ControlPlane, bucket: Bucket, folder: Path) -> Iterator[Worker]:
    """A worker that may download from this machine, so that a test can hold its download. Its
    ffmpeg does not end while the file `hold` exists."""
    script = folder / "ffmpeg"
    hold = f"[ -e '{folder}/hold' ] && cat >/dev/null && exec sleep 60"
    script.write_text(f"#!/bin/sh\n{hold}\nexec '{ffmpeg.executable()}' \"$@\"\n")
    script.chmod(0o755)
    settings = {
        **bucket.settings(),
        "WAN_SPOOL_DIR": str(folder / "spool"),
        "WAN_ALLOW_PRIVATE_URLS": "1",
        "IMAGEIO_FFMPEG_EXE": str(script),
    }
    with started(plane, folder / "worker", **settings) as worker:
        yield worker


@pytest.fixture(autouse=True)
def _mended(bucket: Bucket) -> Iterator[None]:
    yield
    bucket.proxy.mend()


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """The server of a picture that never arrives."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


def puts_of_clips(request: Any) -> bool:
    return request.method == "PUT" and ".mp4" in request.target


def is_put(request: Any) -> bool:
    return bool(request.method == "PUT")


STAGES = ["prepare", "denoise", "decode", "encode", "publish"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_is_stopped_in_any_stage_and_the_worker_is_free(
    plane: ControlPlane,
    worker: Worker,
    bucket: Bucket,
    good: dict[str, Any],
    silent: socket.socket,
    folder: Path,
    stage: str,
) -> None:
    job_id, clips = f"stop-in-{stage}", bucket.clips()
    address = f"http://127.0.0.1:{silent.getsockname()[1]}/photo.jpg"
    payload = {**good, "image": address} if stage == "prepare" else good
    if stage in ("denoise", "decode"):  # these stages are not held, but take time
        payload = {**good, "duration": 15, "size": "1080p"}
    if stage == "publish":
        bucket.proxy.inject(Fault("stall", when=puts_of_clips))
    if stage == "encode":
        (folder / "hold").touch()
    plane.submit(job_id, payload)
    posts = plane.posts[job_id]
    plane.wait_until(lambda: any(p["stage"] == stage for p in posts.progress), seconds=60)
    with silent.accept()[0] if stage == "prepare" else nullcontext():
        plane.stop(job_id)
        plane.wait_until(lambda: "was stopped in" in worker.log_of(job_id), seconds=10)
    (folder / "hold").unlink(missing_ok=True)
    plane.submit(f"{job_id}-next", {**good, "seed": "x"})
    assert "seed" in plane.result(f"{job_id}-next")["error"]
    found = re.search(r"was stopped in (\w+),", worker.log_of(job_id))
    # Frames are checked while they are decoded. Four tiny steps may be over when the signal
    # arrives, but not the held stages (the picture, the encoder, the bucket).
    late = ["decode"] if stage == "denoise" else []
    assert found and found[1] in (stage, "safety", *late)
    assert worker.seconds_until_stopped(job_id) < 1
    assert posts.results == [] and worker.scratch() == [] and bucket.clips() == clips


def test_a_jobs_own_bucket_gets_its_clip_or_the_job_is_not_rendered(
    plane: ControlPlane, worker: Worker, bucket: Bucket, good: dict[str, Any], folder: Path
) -> None:
    """The platform passes `s3Config` to the worker, beside `input`."""
    before, waiting = bucket.clips(), list((folder / "spool").glob("*"))
    bucket.client.create_bucket(Bucket="callers")
    own = {"accessId": "AKIDOFTHECALLER", "accessSecret": "the/callers+secret"}
    own |= {"bucketName": "callers", "endpointUrl": bucket.proxy.url}
    plane.submit("own", good, s3Config=own)
    url = plane.result("own")["output"]["video_url"]
    assert url.startswith(f"{bucket.proxy.url}/callers/") and "X-Amz-Signature" in url
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.read(8)[4:] == b"ftyp"
    plane.submit("own-absent", good, s3Config={**own, "bucketName": "absent"})
    sentence = plane.result("own-absent")["error"]
    assert sentence.endswith("the object store refused it (NoSuchBucket)")
    denied = Fault("answer", times=10**6, when=puts_of_clips, status=403, code="AccessDenied")
    bucket.proxy.inject(denied)  # after the check, which puts no clip
    plane.submit("own-lost", good, s3Config=own)
    sentence = plane.result("own-lost")["error"]
    assert sentence == "The finished clip could not be stored: the object store refused it"
    everything = [item["Key"] for item in bucket.objects("callers")]
    assert len(everything) == 1 and "/own/" in everything[0]
    assert bucket.clips() == before
    assert "callers+secret" not in worker.log.read_text()
    assert "AKIDOFTHECALLER" not in worker.log.read_text()
    assert not {path.suffix for path in (folder / "spool").glob("*") if path not in waiting} & {
        ".mp4",
        ".json",
    }


@pytest.mark.system  # slow: the worker waits most of a minute for the bucket
def test_a_clip_survives_an_unreachable_bucket_and_a_killed_worker(
    bucket: Bucket, good: dict[str, Any], folder: Path
) -> None:
    settings = {**bucket.settings(), "WAN_SPOOL_DIR": str(folder / "outlives")}
    clips = bucket.clips()
    with ControlPlane() as plane, started(plane, folder / "first", **settings) as worker:
        plane.wait_until(lambda: plane.polls > 0, seconds=60)
        bucket.proxy.inject(Fault("answer", times=10**6, status=503, code="SlowDown"))
        plane.submit("kept", good)
        assert plane.result("kept")["error"].endswith("it is kept and will be uploaded later")
        plane.posts["kept"].results.clear()
        plane.submit("kept", good)  # the bucket is still down: no second render, the same sentence
        assert plane.result("kept")["error"].endswith("it is kept and will be uploaded later")
        assert worker.log.read_text().count("recipe") == 1
        assert len(list((folder / "outlives").glob("*.mp4"))) == 1
    bucket.proxy.mend()
    with ControlPlane() as plane, started(plane, folder / "second", **settings) as worker:
        plane.wait_until(lambda: len(bucket.clips()) == len(clips) + 1, seconds=60)
        plane.submit("kept", good)
        assert "X-Amz-Signature" in plane.result("kept")["output"]["video_url"]
        plane.wait_until(lambda: not list((folder / "outlives").glob("*.mp4")), seconds=10)
        text = worker.log.read_text()
        assert "kept clip of job kept is stored: http://" in text
        assert "Signature" not in text and "denoise" not in text
        assert len(bucket.clips()) == len(clips) + 1


def test_a_job_that_kills_its_worker_is_refused_the_third_time(
    bucket: Bucket, good: dict[str, Any], folder: Path
) -> None:
    settings = {**bucket.settings(), "WAN_SPOOL_DIR": str(folder / "poison")}
    for _ in range(2):
        with ControlPlane() as plane, started(plane, folder / "killed", **settings) as worker:
            plane.submit("poison", good)
            plane.wait_until(lambda: bool(plane.posts["poison"].progress), seconds=60)
            worker.process.kill()
    with ControlPlane() as plane, started(plane, folder / "killed", **settings):
        plane.submit("poison", good)
        plane.submit("other", good)
        sentence = "The job crashed its worker 2 times and is not tried again"
        assert plane.result("poison") == {"error": sentence}
        assert "output" in plane.result("other")


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"WAN_STORAGE": "auto"}, "No bucket is set"),
        ({"WAN_MODEL": "auto"}, "No model was found"),
        ({"WAN_MODEL": "wan2.2-ti2v-5b"}, "python -m wan_engine download wan2.2-ti2v-5b"),
        ({"WAN_SAFETY_PROMPT_MODEL": "qwen3guard-gen-0.6b"}, "download safety"),
        ({"WAN_CRF": "high"}, "WAN_CRF is wrong"),
        ({"WAN_SCRATCH_MIN_GB": "1000000"}, "Make room, or set WAN_SCRATCH_DIR"),
        ({"BUCKET_ENDPOINT_URL": "{proxy}/absent"}, "create it or correct BUCKET_NAME"),
        ({}, "the key may not do this; allow it s3:PutObject"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_worker_that_could_not_do_a_job_does_not_start(
    bucket: Bucket, tmp_path: Path, settings: dict[str, str], advice: str
) -> None:
    values = {**bucket.settings(), **settings}
    if settings == {"WAN_STORAGE": "auto"}:
        values = settings
    values = {name: value.format(proxy=bucket.proxy.url) for name, value in values.items()}
    if not settings:  # a key that may read the bucket but not write
        denied = Fault("answer", times=10**6, when=is_put, status=403, code="AccessDenied")
        bucket.proxy.inject(denied)
    with ControlPlane() as plane, started(plane, tmp_path / "worker", **values) as worker:
        assert worker.process.wait(60) == 1
        assert advice in worker.log.read_text()
        assert "Traceback" not in worker.log.read_text()
        assert plane.polls == 0
