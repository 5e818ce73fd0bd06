"""The services of the compose file, each run as a plain process: its command, environment and
health check. moto replaces MinIO."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
import yaml
from moto.server import ThreadedMotoServer

from benchmarks.services.gateway import free_port
from tests import warm
from wan_engine import data_uri
from wan_engine.gateway import keys

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docker" / "compose.yaml"
PASSWORD = "not-a-secret"
SMALLEST = {
    "OMP_NUM_THREADS": "1",
    "WAN_RENDER_AREA": "3072",
    "WAN_FPS": "native",
    "WAN_PRESET": "superfast",
    "WAN_SAFETY_PROMPT_MODEL": "tiny-prompt-guard",
    "WAN_SAFETY_IMAGE_MODEL": "tiny-image-classifier",
}


def substituted(text: str, variables: Mapping[str, str]) -> str:
    """Replaces `${NAME:-default}` and `${NAME:?why}` as compose does."""

    def value(found: re.Match[str]) -> str:
        name, how, rest = found.groups()
        if how == "?":
            return variables[name]
        return variables.get(name, rest)

    return re.sub(r"\$\{(\w+):([-?])([^}]*)\}", value, text)


@pytest.fixture
def bucket() -> Iterator[int]:
    """The port of an S3 server with the bucket that the file's last service makes."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    secret = {"aws_access_key_id": "wan", "aws_secret_access_key": PASSWORD}
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **secret)
    client.create_bucket(Bucket="clips")
    client.close()
    yield port
    server.stop()


class Here:
    """The file with the ports, folders and variables of this test."""

    def __init__(self, folder: Path, bucket_port: int) -> None:
        self.folder = folder
        self.key, entry = keys.new_entry("ann")
        self.gateway_port, self.worker_port = free_port(), free_port()
        text = FILE.read_text("utf-8")
        for written, used in (
            ("8000", self.gateway_port),
            ("8001", self.worker_port),
            ("9000", bucket_port),
            ("/app/outputs", folder / "outputs"),
        ):
            text = text.replace(str(written), str(used))
        variables = {"MINIO_ROOT_PASSWORD": PASSWORD, "WAN_API_KEYS": entry}
        self.services: dict[str, Any] = yaml.safe_load(substituted(text, variables))["services"]

    @contextmanager
    def running(self, name: str) -> Iterator[warm.Process]:
        service = self.services[name]
        python, *arguments = service["command"]
        assert python == "python"
        plain = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "PYTHONPATH": str(ROOT)}
        environment = {**plain, **SMALLEST, **service["environment"]}
        with (self.folder / f"{name}.log").open("wb") as log, Path(os.devnull).open() as nothing:
            few_frames = str(ROOT / "tests" / "small.py")
            process = warm.shared().start(
                [few_frames, *arguments],
                env=environment,
                cwd=ROOT,
                stdin=nothing,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def healthy(self, name: str) -> bool:
        kind, python, *arguments = self.services[name]["healthcheck"]["test"]
        assert (kind, python) == ("CMD", "python")
        checked = subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
        return checked.returncode == 0


def wait_until(true: Any, process: warm.Process, here: Here, name: str) -> None:
    deadline = time.monotonic() + 90
    while not true():
        assert process.poll() is None, here.log(name)
        assert time.monotonic() < deadline, here.log(name)
        time.sleep(0.3)


def answer_of(url: str) -> int:
    """The HTTP status, or 0 while nothing listens."""
    try:
        return httpx.get(url).status_code
    except httpx.TransportError:
        return 0


def is_a_clip(url: str, bucket: int) -> bool:
    clip = httpx.get(url)
    return url.startswith(f"http://127.0.0.1:{bucket}/") and clip.content[4:8] == b"ftyp"


def job(data: Path) -> dict[str, Any]:
    image = data_uri(data / "rocket_640x360.jpg")
    return {"input": {"prompt": "lift-off", "image": image, "seed": 1}}


def test_the_gateway_renders_for_callers_with_a_key_and_ends_when_told_to(
    tmp_path: Path, bucket: int, data: Path
) -> None:
    here = Here(tmp_path, bucket)
    endpoint = f"http://127.0.0.1:{here.gateway_port}/v2/wan-2-6-i2v"
    with here.running("gateway") as process:
        assert not here.healthy("gateway")
        ready = f"http://127.0.0.1:{here.gateway_port}/readyz"
        wait_until(lambda: answer_of(ready) == 200, process, here, "gateway")
        assert here.healthy("gateway")
        assert httpx.post(f"{endpoint}/runsync", json=job(data)).status_code == 401
        headers = {"Authorization": f"Bearer {here.key}"}
        answer = httpx.post(f"{endpoint}/runsync", json=job(data), headers=headers, timeout=90)
        body = answer.json()
        assert body["status"] == "COMPLETED", here.log("gateway")
        assert is_a_clip(body["output"]["video_url"], bucket)
        process.send_signal(signal.SIGTERM)
        grace = int(here.services["gateway"]["stop_grace_period"].removesuffix("s"))
        assert process.wait(grace) == 0
    assert PASSWORD not in here.log("gateway")
    assert (tmp_path / "outputs" / "gateway.db").is_file()


def test_the_worker_answers_like_the_development_api(
    tmp_path: Path, bucket: int, data: Path
) -> None:
    here = Here(tmp_path, bucket)
    address = f"http://127.0.0.1:{here.worker_port}"
    with here.running("worker") as process:
        wait_until(lambda: 0 < answer_of(address) < 500, process, here, "worker")
        body = httpx.post(f"{address}/runsync", json=job(data), timeout=90).json()
        assert body["status"] == "COMPLETED", here.log("worker")
        assert is_a_clip(body["output"]["video_url"], bucket)


def test_without_keys_or_a_password_nothing_starts() -> None:
    text = FILE.read_text("utf-8")
    for variables in ({}, {"WAN_API_KEYS": "x"}, {"MINIO_ROOT_PASSWORD": "x"}):
        with pytest.raises(KeyError):
            substituted(text, variables)


def test_all_share_one_network_and_only_this_machine_reaches_it() -> None:
    services: dict[str, Any] = yaml.safe_load(FILE.read_text("utf-8"))["services"]
    assert set(services) == {"gateway", "worker", "minio", "bucket"}
    for name, service in services.items():
        assert name == "minio" or service["network_mode"] == "service:minio"
        assert ("ports" in service) == (name == "minio")
    ports = [port.split(":") for port in services["minio"]["ports"]]
    assert [port[0] for port in ports] == ["127.0.0.1"] * len(ports)
    assert all(outer == inner for _, outer, inner in ports)
