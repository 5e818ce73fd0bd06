"""The database: migrated to the tables of the code, and used by one gateway only."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from tests.gateway.conftest import Serve, wish
from tests.gateway.jobs.test_jobs import ended, submitted
from wan_engine.errors import ConfigurationError
from wan_engine.gateway.doors.runpod import door as runpod_door
from wan_engine.gateway.jobs import database, ownership
from wan_engine.gateway.refusals import Refusal
from wan_engine.settings import Settings

DOORS = (runpod_door.door,)


def test_the_migrations_make_the_tables_of_the_code(tmp_path: Path) -> None:
    async def line() -> list[Any]:
        async with (
            database.open_database(Settings(output_dir=tmp_path)) as opened,
            opened.engine.connect() as connection,
        ):
            return await connection.run_sync(differences)

    assert asyncio.run(line()) == []


def differences(connection: sa.Connection) -> list[Any]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return list(compare_metadata(context, database.metadata))


def test_a_difference_would_be_found(tmp_path: Path) -> None:
    asyncio.run(_open(Settings(output_dir=tmp_path)))
    with closing(sqlite3.connect(tmp_path / "gateway.db")) as connection, connection:
        connection.execute("ALTER TABLE jobs DROP COLUMN worker")
    engine = sa.create_engine(f"sqlite:///{tmp_path}/gateway.db")
    with engine.connect() as connection_2:
        assert len(differences(connection_2)) == 1
    engine.dispose()


async def _open(settings: Settings) -> None:
    async with database.open_database(settings):
        pass


def test_a_database_is_opened_again_with_its_contents(tmp_path: Path) -> None:
    settings = Settings(output_dir=tmp_path)
    for _ in range(2):
        asyncio.run(_open(settings))
    with closing(sqlite3.connect(tmp_path / "gateway.db")) as connection, connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [
            ("0003",)
        ]


def test_the_database_of_a_newer_version_is_refused_with_advice(tmp_path: Path) -> None:
    settings = Settings(output_dir=tmp_path)
    asyncio.run(_open(settings))
    with closing(sqlite3.connect(tmp_path / "gateway.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigurationError, match=r"gateway.db is of a newer version: start that"):
        asyncio.run(_open(settings))


def test_a_second_gateway_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_LOCK_SECONDS", 0.3)
    settings = Settings(output_dir=tmp_path)

    async def line() -> None:
        async with database.open_database(settings):
            with pytest.raises(ConfigurationError, match="Another gateway"):
                await _open(settings)
        await _open(settings)

    asyncio.run(line())


@pytest.mark.parametrize(
    "url", ["mysql://localhost/x", "nonsense", "sqlite+pysqlite:///x.db", "postgresql://["]
)
def test_another_kind_of_database_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="WAN_DATABASE_URL"):
        asyncio.run(_open(Settings(database_url=url)))


def test_an_unreachable_database_is_reported_without_its_password(tmp_path: Path) -> None:
    url = "postgresql://wan:hunter2@127.0.0.1:1/wan"
    with pytest.raises(ConfigurationError, match="WAN_DATABASE_URL") as raised:
        asyncio.run(_open(Settings(database_url=url)))
    assert "hunter2" not in str(raised.value) and "hunter2" not in repr(Settings(database_url=url))


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="WAN_OUTPUT_DIR"):
        asyncio.run(_open(Settings(output_dir=tmp_path / "file" / "outputs")))


def test_only_the_owner_can_read_the_database(tmp_path: Path) -> None:
    """It holds prompts, pictures and the secret of the links."""
    asyncio.run(_open(Settings(output_dir=tmp_path)))
    assert stat.S_IMODE((tmp_path / "gateway.db").stat().st_mode) & 0o077 == 0


def test_an_error_of_the_database_logs_no_text_of_a_caller(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def line() -> None:
        async with serve() as served:
            async with served.gateway.store._engine.begin() as connection:
                await connection.execute(sa.text("DROP TABLE requests"))
            body = {"input": wish(prompt="my secret"), "webhook": "https://a.example/?token=secret"}
            answer = await served.http.post("/v2/wan-2-6-i2v/run", json=body)
            assert answer.status_code == 503

    asyncio.run(line())
    assert "the database failed" in caplog.text and "secret" not in caplog.text


def test_while_the_database_is_away_callers_get_503_and_results_wait(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wan_engine.gateway.jobs.dispatch._AGAIN_SECONDS", 0.05)

    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            job = await submitted(served)
            await asyncio.sleep(0.1)
            other = sqlite3.connect(tmp_path / "outputs" / "gateway.db", isolation_level=None)
            engine = served.gateway.store._engine
            sa.event.listen(engine.sync_engine, "begin", refuse)
            served.backend.release()
            path = "/v2/wan-2-6-i2v/run"
            answer = await served.http.post(path, json={"input": wish()})
            assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
            assert (await served.http.get("/readyz")).status_code == 503
            assert (await served.http.get("/healthz")).status_code == 200
            with pytest.raises(Refusal):
                await served.jobs.request(job.id)
            await asyncio.sleep(0.2)
            assert not served.jobs._now(job).final
            sa.event.remove(engine.sync_engine, "begin", refuse)
            assert (await ended(served, job)).state == "completed"
            assert served.backend.rendered == [job.id]
            other.close()

    asyncio.run(line())


def refuse(connection: sa.Connection) -> None:
    raise sa.exc.OperationalError("begin", {}, Exception("the disk is full"))


# --- Postgres ------------------------------------------------------------------------------------


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from tests.gateway.postgres import running

    with running(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.mark.system
def test_jobs_live_in_postgres_as_well(
    serve: Serve, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_LOCK_SECONDS", 0.5)

    async def line() -> None:
        async with serve(database_url=postgres) as served:
            done = await ended(served, await submitted(served))
            failed = await ended(served, await submitted(served, "fail:encode_failed:no"))
            again = await served.jobs.retry(failed)
            assert (await ended(served, again)).state == "failed"
            served.backend.hold()
            waiting = [await submitted(served, payload={"n": n, "nul": "\0"}) for n in range(3)]
            assert (await served.jobs.counts())[0]["completed"] == 1
            with pytest.raises(ConfigurationError, match="Another gateway"):
                await _open(Settings(database_url=postgres))
            async with served.gateway.store._engine.connect() as connection:
                assert await connection.run_sync(differences) == []
        async with serve(database_url=postgres) as served:
            assert await served.jobs.find("runpod", "ann", done.id) == done
            for job in waiting:
                assert (await ended(served, job)).state == "completed"
            listed = await anext(served.jobs.of_owner("runpod", "ann", states=("completed",)))
            assert len(listed) == 4

    asyncio.run(line())


@pytest.mark.system
@pytest.mark.parametrize(
    "body",
    [
        '{"input":{"prompt":"x","image":"https://a.example/"},"webhook":"http://a.example/\\u0000"}',
        '{"input":{"prompt":"x","image":"https://a.example/","junk":[1e999]}}',
    ],
)
def test_text_that_postgres_cannot_store_is_the_callers_fault(
    serve: Serve, postgres: str, body: str
) -> None:
    async def line() -> None:
        async with serve(database_url=postgres) as served:
            answer = await served.http.post("/v2/wan-2-6-i2v/run", content=body)
            assert answer.status_code == 400

    asyncio.run(line())


@pytest.mark.system
def test_closed_connections_to_postgres_are_replaced_and_the_lock_is_taken_again(
    serve: Serve, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_LOCK_SECONDS", 0.3)
    monkeypatch.setattr(ownership, "_CONFIRM_SECONDS", 0.05)

    async def line() -> None:
        async with serve(database_url=postgres) as served:
            await ended(served, await submitted(served))
            async with served.gateway.store._engine.connect() as connection:
                kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                kill += "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                await connection.execute(sa.text(kill))
            await asyncio.sleep(0.3)
            with pytest.raises(ConfigurationError, match="Another gateway"):
                await _open(Settings(database_url=postgres))
            assert (await ended(served, await submitted(served))).state == "completed"

    asyncio.run(line())


def test_a_database_on_a_disk_without_locks_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(_descriptor: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(ConfigurationError, match=r"cannot be locked.*WAN_DATABASE_URL"):
        asyncio.run(_open(Settings(output_dir=tmp_path)))
