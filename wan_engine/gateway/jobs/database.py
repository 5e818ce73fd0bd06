"""Defines the tables, and opens and migrates the database for one gateway at a time.

Without WAN_DATABASE_URL it is a SQLite file (WAL, synced at each commit, so that an accepted job
survives a crash). The gateway that has the lock owns all jobs, so it may queue the running jobs of
a dead gateway again.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from wan_engine.errors import ConfigurationError
from wan_engine.gateway.jobs.ownership import Ownership
from wan_engine.settings import Settings

log = logging.getLogger(__name__)

_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK_SECONDS = 20.0  # a gateway that is being replaced stops within this time
_POLL_SECONDS = 0.2
_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("door", sa.String(32), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("payload", sa.JSON, nullable=False),
    sa.Column("base_url", sa.Text, nullable=False),
    sa.Column("webhook", sa.Text),
    sa.Column("run_seconds", sa.Float),
    sa.Column("ttl_seconds", sa.Float, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("queued_ms", sa.BigInteger, nullable=False),
    sa.Column("expires_ms", sa.BigInteger, nullable=False),
    sa.Column("started_ms", sa.BigInteger),
    sa.Column("finished_ms", sa.BigInteger),
    sa.Column("result", sa.JSON),
    sa.Column("error", sa.Text),
    sa.Column("error_code", sa.String(64)),
    sa.Column("starts", sa.Integer, nullable=False, key="workers_lost"),
    sa.Column("retries", sa.Integer, nullable=False),
    sa.Column("remote_id", sa.String(128)),
    sa.Column("worker", sa.String(64)),
    sa.Column("task", sa.String(32), nullable=False, server_default="image-to-video"),
    sa.Index("jobs_by_owner", "door", "owner", "created_ms"),
    sa.Index("jobs_by_state", "state", "finished_ms"),
)
"""One small row per job. The columns are the fields of `Job`."""

requests = sa.Table(
    "requests",
    metadata,
    sa.Column(
        "job_id", sa.String(64), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("parts", sa.Integer, nullable=False, server_default="0"),
)
"""The requests, without their long texts (`request_parts.py`). A request is complete if it has as
many rows in `request_parts` as `parts` says."""

long_texts = sa.Table(
    "contents",
    metadata,
    sa.Column("hash", sa.String(64), primary_key=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
)
"""The long texts of requests, mostly media, by their SHA-256. `long_texts.py` stores their
bytes."""

request_parts = sa.Table(
    "request_parts",
    metadata,
    sa.Column(
        "job_id",
        sa.String(64),
        sa.ForeignKey("requests.job_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("place", sa.String(512), primary_key=True),
    sa.Column("hash", sa.String(64), sa.ForeignKey("contents.hash"), nullable=False),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Index("parts_by_hash", "hash"),
    sa.Index("parts_by_owner", "owner", "hash"),
)
"""The long texts of each request and their places. The owner is that of the job."""

long_text_pieces = sa.Table(
    "content_pieces",
    metadata,
    sa.Column("hash", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
)
"""The bytes of long texts, in Postgres."""

webhooks = sa.Table(
    "webhooks",
    metadata,
    sa.Column(
        "job_id", sa.String(64), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("next_ms", sa.BigInteger, nullable=False),
)
"""Ended jobs whose webhook has not been delivered yet."""

facts = sa.Table(
    "facts",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
"""Values that this gateway generated once, such as the secret of its links."""


@dataclass(frozen=True)
class Database:
    """An open database, and the ownership of its jobs."""

    engine: AsyncEngine
    ownership: Ownership


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """Open and migrate the database, and lock it for this gateway. Raises `ConfigurationError`."""
    async with AsyncExitStack() as stack:
        url = _url(settings)
        if url.get_backend_name() == "sqlite":
            await stack.enter_async_context(_file_lock(Path(url.database or "")))
        engine = create_async_engine(url, **_options(url))
        ownership = Ownership(engine, shared=url.get_backend_name() != "sqlite")
        stack.push_async_callback(engine.dispose)
        try:
            if url.get_backend_name() == "sqlite":
                sa.event.listen(engine.sync_engine, "connect", _set_up_sqlite)
            else:
                stack.push_async_callback(ownership.unlock)
                await _until(ownership.try_lock)
            async with engine.begin() as connection:
                await connection.run_sync(_migrate)
            await stack.enter_async_context(ownership.held())
        except CommandError as error:  # alembic does not know the revision that it is at
            log.error("the database cannot be migrated: %s", error)
            raise ConfigurationError(
                f"The database {url.render_as_string(hide_password=True)} is of a newer version: "
                "start that version, or the backup that you made before the upgrade"
            ) from error
        except (SQLAlchemyError, OSError) as error:
            log.error("the database cannot be used: %s", error)
            raise ConfigurationError(
                f"The database {url.render_as_string(hide_password=True)} cannot be used "
                f"({type(error).__name__}): check WAN_DATABASE_URL"
            ) from error
        yield Database(engine, ownership)


def _url(settings: Settings) -> sa.URL:
    if settings.database_url is None:
        path = settings.output_dir.expanduser().resolve() / "gateway.db"
        return sa.URL.create("sqlite+aiosqlite", database=str(path))
    try:
        url = sa.make_url(settings.database_url.get_secret_value())
        driver = _DRIVERS.get(url.drivername, url.drivername)
        if driver not in _DRIVERS.values() or url.database in (None, "", ":memory:"):
            raise ArgumentError(driver)
        return url.set(drivername=driver)
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise ConfigurationError(
            "WAN_DATABASE_URL must be sqlite:///path or postgresql://user:password@host/database"
        ) from None


def _options(url: sa.URL) -> dict[str, Any]:
    hidden = {"hide_parameters": True}  # logged errors could contain callers' text
    if url.get_backend_name() == "sqlite":
        return {"pool_size": 4, **hidden}
    return {"pool_size": 8, "pool_pre_ping": True, **hidden}


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


@asynccontextmanager
async def _file_lock(path: Path) -> AsyncIterator[None]:
    """Lock a file. The system releases the lock when the process ends, even by a crash."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # It contains prompts and the secret of the links, so only its owner may read it.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        held = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigurationError(
            f"The database {path} cannot be made ({error.strerror}): set WAN_DATABASE_URL, or "
            "WAN_OUTPUT_DIR to a folder that this user may write"
        ) from error

    async def try_once() -> bool:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise ConfigurationError(
                f"The database {path} cannot be locked ({error.strerror}), so that two gateways "
                "could take the same jobs: set WAN_DATABASE_URL to a file on a disk of this "
                "machine, or to a Postgres database"
            ) from error
        return True

    try:
        await _until(try_once)
        yield
    finally:
        os.close(held)


async def _until(try_once: Callable[[], Awaitable[bool]]) -> None:
    deadline = asyncio.get_running_loop().time() + _LOCK_SECONDS
    while not await try_once():
        if asyncio.get_running_loop().time() > deadline:
            raise ConfigurationError(
                "Another gateway uses this database: stop it, or set WAN_DATABASE_URL"
            )
        await asyncio.sleep(_POLL_SECONDS)


def _migrate(connection: sa.Connection) -> None:
    """Run the steps of `migrations/versions` that the database lacks."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    script = ScriptDirectory.from_config(config)

    def steps(revision: Any, _context: Any) -> Any:
        return script._upgrade_revs("head", revision)  # as in alembic's documentation

    with EnvironmentContext(config, script, fn=steps) as context:
        context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
        context.run_migrations()
