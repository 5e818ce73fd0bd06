"""Two gateways on one Postgres whose lock is cut: one owns the jobs, and each job is rendered
once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import httpx
import pytest

from benchmarks.services.gateway import answers, free_port, until
from benchmarks.services.processes import ROOT
from tests.gateway.conftest import Serve, eventually, wish
from tests.gateway.jobs.test_jobs import ended, submitted
from tests.gateway.test_crash import RUN, STATUS
from wan_engine.gateway.jobs import ownership
from wan_engine.gateway.jobs.database import Database
from wan_engine.gateway.jobs.long_texts import LongTextTable
from wan_engine.gateway.refusals import Refusal

pytestmark = pytest.mark.system


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from tests.gateway.postgres import running

    with running(tmp_path_factory.mktemp("postgres")) as url:
        yield url


def asked(url: str, statement: str) -> None:
    async def line() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(statement)
        await connection.close()

    asyncio.run(line())


CUT = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"


class Gateways:
    """Processes with one output folder and one database."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self._folder = folder
        self._environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "WAN_OUTPUT_DIR": str(folder / "outputs"),
            "WAN_DATABASE_URL": database_url,
        }
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str) -> tuple[subprocess.Popen[bytes], str]:
        port = free_port()
        command = [sys.executable, "-m", "tests.gateway.serve_fake", str(port)]
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=self._environment, cwd=self._folder, stdout=log, stderr=log
            )
        self.running.append(process)
        return process, f"http://127.0.0.1:{port}"

    def renders(self) -> Counter[str]:
        log = self._folder / "outputs" / "renders.log"
        return Counter(log.read_text().split() if log.exists() else ())


@pytest.fixture
def gateways(tmp_path: Path, postgres: str) -> Iterator[Gateways]:
    made = Gateways(tmp_path, postgres)
    yield made
    for process in made.running:
        process.kill()
        process.wait()


def test_a_gateway_that_loses_its_lock_ends_and_no_job_is_rendered_twice(
    gateways: Gateways, postgres: str
) -> None:
    first, url = gateways.start("first")
    until(lambda: answers(url))
    with httpx.Client(base_url=url) as http:
        jobs = [
            http.post(RUN, json={"input": wish(prompt="sleep 0.5")}).json()["id"] for _ in range(8)
        ]
    second, other = gateways.start("second")
    until(lambda: len(gateways.renders()) >= 2)
    asked(postgres, CUT)
    assert first.wait(90) == 1  # it says why, and its work has ended
    until(lambda: answers(other), 60)
    with httpx.Client(base_url=other, timeout=30) as http:

        def all_done() -> bool:
            states = [http.get(STATUS + job).json()["status"] for job in jobs]
            assert not {"FAILED", "CANCELLED"} & set(states)
            return set(states) == {"COMPLETED"}

        until(all_done, 60)
    assert gateways.renders() == dict.fromkeys(jobs, 1)
    assert second.poll() is None


def test_a_paused_gateway_finds_its_jobs_taken_and_changes_none(
    gateways: Gateways, postgres: str
) -> None:
    """It was paused during the loss. Its state is old, and the database shows that."""
    first, url = gateways.start("first")
    until(lambda: answers(url))
    job = httpx.post(url + RUN, json={"input": wish(prompt="sleep 1")}).json()["id"]
    until(lambda: httpx.get(url + STATUS + job).json()["status"] == "IN_PROGRESS")
    os.kill(first.pid, signal.SIGSTOP)
    asked(postgres, CUT)
    _, other = gateways.start("second")
    until(lambda: answers(other), 60)
    os.kill(first.pid, signal.SIGCONT)
    until(lambda: httpx.get(other + STATUS + job).json()["status"] == "COMPLETED", 60)
    assert first.wait(90) == 1


def test_a_gateway_that_cannot_confirm_its_lock_stops_and_continues_when_it_can(
    serve: Serve, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "_CONFIRM_SECONDS", 0.05)
    monkeypatch.setattr(ownership, "_LEASE_SECONDS", 0.2)
    monkeypatch.setattr("wan_engine.gateway.jobs.dispatch._AGAIN_SECONDS", 0.05)

    async def line() -> None:
        async with serve(database_url=postgres) as served:
            owner = served.gateway.ownership
            real, away = owner._confirm, True

            async def confirm() -> bool:
                if away:
                    raise OSError
                return await real()

            served.backend.hold()
            job = await submitted(served)
            await eventually(lambda: job.id in served.backend.requests)
            monkeypatch.setattr(owner, "_confirm", confirm)
            await eventually(lambda: served.backend.stopped == [job.id])
            answer = await served.http.get("/readyz")
            assert answer.status_code == 503
            assert answer.json()["waiting_for"] == ["the lock of the database is lost"]
            refused = await served.http.post(RUN, json={"input": wish()})
            assert refused.status_code == 503
            away = False
            served.backend.release()
            assert (await ended(served, job)).state == "completed"
            assert served.backend.rendered == [job.id]
            assert (await served.http.get("/readyz")).status_code == 200

    asyncio.run(line())


def test_a_gateway_that_lost_its_jobs_neither_writes_nor_removes_long_texts(
    serve: Serve, postgres: str
) -> None:
    """The new owner has accepted a job with the same picture meanwhile, and needs it."""
    taken = "UPDATE facts SET value = (value::int + 1)::text WHERE name = 'epoch'"

    async def line() -> None:
        async with serve(database_url=postgres) as served:
            store, owner = served.gateway.store, served.gateway.ownership
            texts = LongTextTable(Database(store._engine, owner))
            await texts.put("0" * 64, b"x" * (3 << 20))
            await asyncio.to_thread(asked, postgres, taken)
            for change in (texts.remove("0" * 64), texts.put("1" * 64, b"y")):
                with pytest.raises(Refusal, match="being replaced"):
                    await change
            assert await texts.names() == ["0" * 64]
            assert await texts.get("0" * 64) == b"x" * (3 << 20)
            assert owner.lost

    asyncio.run(line())


def test_after_a_clean_end_the_next_gateway_starts_at_once(
    serve: Serve, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "_TAKEOVER_SECONDS", 3600)

    async def line() -> None:
        for _ in range(2):
            async with serve(database_url=postgres) as served:
                assert (await ended(served, await submitted(served))).state == "completed"

    asyncio.run(line())
