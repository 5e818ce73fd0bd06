"""Gateway and engine killed at random moments: every accepted job finishes, or fails with a reason,
and is rendered once."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import httpx
import pytest

from benchmarks.services.gateway import free_port, until
from tests.gateway.conftest import SERVE_ENDPOINT, Process, gateway_process, wish
from tests.gateway.fake_endpoint import FakeEndpoint

RUN = "/v2/wan-2-6-i2v/run"
STATUS = "/v2/wan-2-6-i2v/status/"


class Client(threading.Thread):
    """Submits jobs until stopped. `accepted` are the jobs that got an id."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self.stopped = threading.Event()
        self.accepted: list[str] = []

    def run(self) -> None:
        number = 0
        while not self.stopped.wait(0.03):
            number += 1
            seconds = (number % 5) * 0.03
            body = {"input": wish(prompt=f"sleep {seconds}")}
            try:
                answer = httpx.post(self._url + RUN, json=body, timeout=10)
            except httpx.TransportError:
                continue  # the gateway is dead: the job was not accepted, or nobody knows its id
            if answer.status_code == 200:
                self.accepted.append(answer.json()["id"])


def kill_gateway(process: Process) -> None:
    process.popen.kill()
    process.popen.wait()


def kill_engine(process: Process) -> None:
    for pid in process.engine_pids():
        os.kill(pid, signal.SIGKILL)


def crash(folder: Path, rounds: int, seed: int) -> None:
    """`rounds` kills of each kind, in random order and at random moments."""
    dice, port = random.Random(seed), free_port()
    kills = [kill_gateway, kill_engine] * rounds
    dice.shuffle(kills)
    client = Client(f"http://127.0.0.1:{port}")
    client.start()
    try:
        while kills:
            with gateway_process(folder, port, WAN_JOB_STARTS="20", WAN_RATE_LIMIT="0") as process:
                while kills:
                    time.sleep(dice.uniform(0.05, 0.9))
                    kill = kills.pop()
                    kill(process)
                    if kill is kill_gateway:
                        break
    finally:
        client.stopped.set()
        client.join()
    assert len(client.accepted) > 3 * rounds
    with gateway_process(folder, port, WAN_JOB_STARTS="20", WAN_RATE_LIMIT="0") as process:
        states = final_states(process, client.accepted)
    assert Counter(states.values()) == {"COMPLETED": len(client.accepted)}
    renders = Counter((folder / "outputs" / "renders.log").read_text().split())
    assert set(client.accepted) <= set(renders)
    # A render is logged before its clip is stored. After a kill between the two, it runs again.
    assert sum(count - 1 for count in renders.values()) <= 2 * rounds


def final_states(process: Process, job_ids: list[str]) -> dict[str, str]:
    states: dict[str, str] = {}
    with httpx.Client(base_url=process.url, timeout=30) as http:

        def ended() -> bool:
            for job_id in job_ids:
                if states.get(job_id) not in ("COMPLETED", "FAILED"):
                    answer = http.get(STATUS + job_id)
                    assert answer.status_code == 200, f"{job_id} is lost"
                    states[job_id] = answer.json()["status"]
            return all(state in ("COMPLETED", "FAILED") for state in states.values())

        until(ended, 120)
        for job_id in job_ids[-5:]:  # and their links work
            url = http.get(STATUS + job_id).json()["output"]["video_url"]
            assert http.get(url).content == b"clip of " + job_id.encode()
    return states


@pytest.mark.system  # takes 15 s
def test_a_few_kills_lose_no_job(tmp_path: Path) -> None:
    crash(tmp_path, rounds=2, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_many_kills_lose_no_job(tmp_path: Path, seed: int) -> None:
    crash(tmp_path, rounds=10, seed=seed)


def test_a_clip_stored_before_the_kill_is_adopted(tmp_path: Path) -> None:
    """The gateway dies after the engine stored a clip and before it stored the result."""
    port = free_port()
    with gateway_process(tmp_path, port) as process:
        job_id = process.ask("POST", RUN, json={"input": wish(prompt="sleep 1")})["id"]
        until(lambda: process.ask("GET", STATUS + job_id)["status"] == "IN_PROGRESS")
        time.sleep(0.2)
        os.kill(process.popen.pid, signal.SIGSTOP)  # the engine runs on unheard
        try:
            renders = tmp_path / "outputs" / "renders.log"
            records = tmp_path / "outputs" / ".jobs"
            until(lambda: records.is_dir() and any(records.glob("*.json")))
        finally:
            process.popen.kill()
            process.popen.wait()
    with gateway_process(tmp_path, port) as process:
        assert final_states(process, [job_id]) == {job_id: "COMPLETED"}
    assert renders.read_text().split() == [job_id]


def test_a_job_that_kills_its_engine_fails_with_a_reason_and_the_others_continue(
    tmp_path: Path,
) -> None:
    with gateway_process(tmp_path, free_port(), WAN_JOB_STARTS="2") as process:
        bad = process.ask("POST", RUN, json={"input": wish(prompt="die")})["id"]
        good = process.ask("POST", RUN, json={"input": wish(prompt="sleep 0")})["id"]
        until(lambda: process.ask("GET", STATUS + good)["status"] == "COMPLETED")
        told = process.ask("GET", STATUS + bad)
        assert told["status"] == "FAILED"
        assert told["error"] == "The job crashed its worker 2 times and is not tried again"


def test_a_killed_gateway_is_not_the_jobs_fault(tmp_path: Path) -> None:
    port = free_port()
    with gateway_process(tmp_path, port, WAN_JOB_STARTS="1") as process:
        job_id = process.ask("POST", RUN, json={"input": wish(prompt="sleep 2")})["id"]
        until(lambda: process.ask("GET", STATUS + job_id)["status"] == "IN_PROGRESS")
        kill_gateway(process)
    with gateway_process(tmp_path, port, WAN_JOB_STARTS="1") as process:
        assert final_states(process, [job_id]) == {job_id: "COMPLETED"}


def test_a_kill_while_the_engine_loads_fails_no_job(tmp_path: Path) -> None:
    port = free_port()
    with gateway_process(tmp_path, port, WAN_MODEL="slow", WAN_JOB_STARTS="1") as process:
        job_id = process.ask("POST", RUN, json={"input": wish(prompt="sleep 0")})["id"]
        until(lambda: bool(process.engine_pids()))
        kill_engine(process)
        kill_gateway(process)
    with gateway_process(tmp_path, port, WAN_JOB_STARTS="1") as process:
        assert final_states(process, [job_id]) == {job_id: "COMPLETED"}


def crash_before_an_endpoint(folder: Path, kills: int) -> None:
    """Twenty jobs at an endpoint. The gateway is killed after it has sent one more, with or without
    an answer. All must finish, each rendered once."""
    port, dice = free_port(), random.Random(kills)
    jobs: list[str] = []
    states: dict[str, str] = {}
    with FakeEndpoint(folder / "far") as endpoint:
        endpoint.answer_seconds = 0.05
        served = partial(gateway_process, folder, port, SERVE_ENDPOINT, **endpoint.settings())
        for kill in range(kills):
            if kill % 2:
                endpoint.answers.clear()
            posted = len(endpoint.posted)
            with served() as process:
                while len(jobs) < 20 * (kill + 1) / kills:
                    body = {"input": wish(prompt=f"sleep 0.3 job {len(jobs)}")}
                    jobs.append(process.ask("POST", RUN, json=body)["id"])
                until(partial(_more, endpoint.posted, posted))
                time.sleep(dice.uniform(0, 0.1))
                kill_gateway(process)
            endpoint.answers.set()
        with served() as process:

            def all_ended() -> bool:
                for job in jobs:
                    states[job] = process.ask("GET", STATUS + job)["status"]
                return not set(states.values()) & {"IN_QUEUE", "IN_PROGRESS"}

            until(all_ended, 120)
        posts = [fields["wan_claim"] for fields in endpoint.posted]
        renders = endpoint.renderer.renders
    print(f"{kills} kills: {len(posts)} posts of {len(set(posts))} renders, {len(renders)} done")
    assert Counter(states.values()) == {"COMPLETED": 20}
    assert len(posts) > 20
    assert sorted(Counter(renders).values()) == [1] * 20


def _more(found: Sequence[object], count: int) -> bool:
    return len(found) > count


@pytest.mark.slow
def test_after_kills_of_the_gateway_an_endpoint_finishes_each_job_once(tmp_path: Path) -> None:
    crash_before_an_endpoint(tmp_path, kills=10)
