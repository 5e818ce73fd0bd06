"""`python -m wan_engine serve` and `key` as a user runs them, and the shutdown of a served
gateway."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.services.gateway import INSTANT, free_port, until
from benchmarks.services.processes import ROOT
from tests import warm
from tests.gateway.conftest import Process, gateway_process, wish
from wan_engine.errors import ConfigurationError
from wan_engine.gateway.keys import Keys, digest, new_entry
from wan_engine.gateway.serve import serve
from wan_engine.settings import Settings

RUN = "/v2/wan-2-6-i2v/run"
STATUS = "/v2/wan-2-6-i2v/status/"


def wan(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return warm.shared("gateway").run(["-m", "wan_engine", *arguments], env=env, cwd=folder)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_without_keys_the_gateway_listens_only_to_this_machine(host: str) -> None:
    with pytest.raises(ConfigurationError, match="WAN_API_KEYS"):
        serve(Settings(), host, 0)


@pytest.mark.parametrize(
    ("settings", "variable"),
    [
        ({"public_url": "https://video.example.com"}, "WAN_PUBLIC_URL"),
        ({"public_url": "http://192.0.2.1:8000"}, "WAN_PUBLIC_URL"),
        ({"trusted_proxies": "127.0.0.1"}, "WAN_TRUSTED_PROXIES"),
    ],
)
def test_without_keys_nothing_is_served_behind_a_proxy(
    settings: dict[str, Any], variable: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"{variable}.*WAN_API_KEYS"):
        serve(Settings(**settings), "127.0.0.1", 0)


def test_serve_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    done = wan(tmp_path, "serve", "--host", "0.0.0.0")
    assert done.returncode == 1 and "WAN_API_KEYS" in done.stderr
    assert "Traceback" not in done.stderr


def test_key_prints_a_key_and_its_entry(tmp_path: Path) -> None:
    done = wan(tmp_path, "key", "ann")
    key, entry = done.stdout.split()
    assert done.returncode == 0 and re.fullmatch(r"wan_[\w-]{43}", key)
    name, _, hashed = entry.partition(":")
    assert (name, hashed) == ("ann", digest(key))
    assert Keys({name: hashed}).owner(f"Bearer {key}") == "ann"
    wrong = wan(tmp_path, "key", "a b")
    assert wrong.returncode == 1 and "Traceback" not in wrong.stderr


def test_an_engine_that_can_never_start_ends_the_gateway_with_its_reason(tmp_path: Path) -> None:
    with gateway_process(tmp_path, free_port(), WAN_MODEL="missing") as process:
        process.popen.wait(20)
        assert process.popen.returncode == 1
    log = (tmp_path / "gateway.log").read_text()
    assert "There is no model here" in log


def test_a_gateway_told_to_end_answers_waiting_callers_and_keeps_the_job(tmp_path: Path) -> None:
    """With either signal. The second gateway has the job of the first, and ends as well."""
    port, job_id = free_port(), ""
    for number in (signal.SIGTERM, signal.SIGINT):
        with gateway_process(tmp_path, port) as process:
            if not job_id:
                job_id = process.ask("POST", RUN, json={"input": wish(prompt="sleep 30")})["id"]
            assert process.ask("GET", STATUS + job_id)["status"] in ("IN_QUEUE", "IN_PROGRESS")
            end_while_somebody_waits(process, job_id, number)


def end_while_somebody_waits(process: Process, job_id: str, number: signal.Signals) -> None:
    until(lambda: process.ask("GET", STATUS + job_id)["status"] == "IN_PROGRESS")
    engine = process.engine_pids()
    wait = f"/v2/wan-2-6-i2v/status-sync/{job_id}?wait=60000"
    with httpx.Client(base_url=process.url, timeout=30) as http:
        request = http.build_request("GET", wait)
        begun = time.monotonic()
        timer = threading.Timer(0.5, process.popen.send_signal, [number])
        timer.start()
        answer = http.send(request)
        assert answer.json()["status"] == "IN_PROGRESS"
        assert time.monotonic() - begun < 30  # not the 60 s that it would wait
        timer.join()
    assert process.popen.wait(20) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in engine)


def test_a_second_signal_does_not_wait_for_running_jobs(tmp_path: Path) -> None:
    port = free_port()
    with gateway_process(tmp_path, port, WAN_SHUTDOWN_SECONDS="60") as process:
        job_id = process.ask("POST", RUN, json={"input": wish(prompt="sleep 50")})["id"]
        until(lambda: process.ask("GET", STATUS + job_id)["status"] == "IN_PROGRESS")
        process.popen.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.popen.poll() is None
        process.popen.send_signal(signal.SIGINT)
        process.popen.wait(15)
    with gateway_process(tmp_path, port) as process:
        assert process.ask("GET", STATUS + job_id)["status"] in ("IN_QUEUE", "IN_PROGRESS")


def test_a_job_that_ends_in_time_is_not_given_back(tmp_path: Path) -> None:
    port = free_port()
    with gateway_process(tmp_path, port, WAN_SHUTDOWN_SECONDS="20") as process:
        job_id = process.ask("POST", RUN, json={"input": wish(prompt="sleep 1.5")})["id"]
        until(lambda: process.ask("GET", STATUS + job_id)["status"] == "IN_PROGRESS")
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(20) == 0
    with gateway_process(tmp_path, port) as process:
        assert process.ask("GET", STATUS + job_id)["status"] == "COMPLETED"
    assert (tmp_path / "outputs" / "renders.log").read_text().split() == [job_id]


def test_endless_headers_are_not_collected(tmp_path: Path) -> None:
    """Sent by anyone: the key is not checked before the headers are complete."""
    port = free_port()
    with gateway_process(tmp_path, port, module=INSTANT):
        for part in (b"a" * 65_536, b"a: b\r\n" * 10_000):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ")
                with pytest.raises(ConnectionError):
                    for _ in range(200):
                        connection.sendall(part)
        large = {"prompt": "x", "image": "data:," + "a" * 3_000_000, "duration": 7}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
            for _ in range(3):  # on one connection
                answer = http.post("/v2/wan-2-6-i2v/runsync", json={"input": large})
                assert "duration" in answer.json()["error"]


def test_forwarded_headers_count_from_trusted_addresses_only(tmp_path: Path) -> None:
    key, entry = new_entry("ann")
    headers = {
        "X-Forwarded-Proto": "https",
        "X-Forwarded-For": "203.0.113.9",
        "Authorization": key,
    }
    for trusted, scheme in (("", "http"), ("127.0.0.1", "https"), ("10.0.0.0/8", "http")):
        port = free_port()
        settings = {"WAN_TRUSTED_PROXIES": trusted, "WAN_API_KEYS": entry}
        with gateway_process(tmp_path, port, module=INSTANT, **settings) as process:
            path = "/v2/wan-2-6-i2v/runsync"
            body = process.ask("POST", path, json={"input": wish()}, headers=headers)
            url = body["output"]["video_url"]
            assert url.startswith(f"{scheme}://127.0.0.1:{port}/results/"), trusted


def test_neither_serving_nor_a_webhook_imports_torch_into_the_gateway(tmp_path: Path) -> None:
    with gateway_process(tmp_path, free_port(), WAN_ALLOW_PRIVATE_URLS="1") as process:
        body = {"input": wish(prompt="sleep 0"), "webhook": "http://127.0.0.1:9/hook"}
        process.ask("POST", "/v2/wan-2-6-i2v/runsync", json=body)
        log = tmp_path / "gateway.log"
        until(lambda: "not delivered" in log.read_text())
        maps = Path(f"/proc/{process.popen.pid}/maps").read_text()
        assert "libpython" in maps or "/python" in maps
        assert "libtorch" not in maps and "/torch/" not in maps
