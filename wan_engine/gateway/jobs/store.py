"""Contains every query of the database, and all SQL about jobs. Each method is one transaction,
which completes even if its caller is cancelled.

A change names the states that it may start from. The database applies it completely or not at all,
so only one of a simultaneous cancel and result takes effect.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from wan_engine.gateway.job import FINAL, RETRYABLE, Job, State
from wan_engine.gateway.jobs.database import (
    Database,
    facts,
    jobs,
    long_texts,
    request_parts,
    requests,
    webhooks,
)
from wan_engine.gateway.jobs.request_parts import LongText
from wan_engine.gateway.refusals import Refusal
from wan_engine.gateway.uncancelled import always_uncancelled

log = logging.getLogger(__name__)

_AWAY_SECONDS = 5


NewRow = tuple[Job, Mapping[str, Any], int, Mapping[str, LongText]]
"""A job, the row of its request, the number of its long texts, and those that are kept."""


@dataclass(frozen=True)
class StoredRequest:
    """A request's row, the hashes of its long texts by their place, and whether all are kept."""

    row: dict[str, Any]
    places: dict[str, str]
    all_kept: bool


@dataclass(frozen=True)
class Used:
    """The bytes of an owner's long texts, the part of them that active jobs need, and the requested
    texts that the owner `had` already."""

    bytes: int
    needed_bytes: int
    had: set[str]


class Store:
    """The queries. Every call raises `Refusal` "unavailable" while the database is unavailable."""

    def __init__(self, database: Database) -> None:
        self._engine, self._ownership = database.engine, database.ownership
        # SQLite has one writer. Waiting for it here does not block a thread.
        self._writing = asyncio.Lock() if self._engine.dialect.name == "sqlite" else nullcontext()

    @asynccontextmanager
    async def _write(self) -> AsyncIterator[AsyncConnection]:
        with _telling():
            async with self._writing, self._engine.begin() as connection:
                await self._ownership.fence(connection)
                yield connection

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[AsyncConnection]:
        with _telling():
            async with self._engine.connect() as connection:
                yield connection

    @always_uncancelled
    async def add(self, new: Iterable[NewRow]) -> None:
        """Store jobs with their requests, all or none, and the webhooks of those that have ended.

        The bytes of the long texts must be stored before.
        """
        new = list(new)
        async with self._write() as connection:
            await connection.execute(sa.insert(jobs), [_row(job) for job, *_ in new])
            await connection.execute(
                sa.insert(requests),
                [{"job_id": job.id, "request": row, "parts": parts} for job, row, parts, _ in new],
            )
            await self._add_parts(connection, new)
            for job, *_ in new:
                await _note_webhook(connection, job)

    async def _add_parts(self, connection: AsyncConnection, new: Iterable[NewRow]) -> None:
        placed = [(job, place, one) for job, _, _, had in new for place, one in had.items()]
        if not placed:
            return
        known = [{"hash": one.hash, "bytes": one.size} for *_, one in placed]
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        await connection.execute(insert(long_texts).on_conflict_do_nothing(), known)
        await connection.execute(
            sa.insert(request_parts),
            [
                {"job_id": job.id, "place": place, "hash": one.hash, "owner": job.owner}
                for job, place, one in placed
            ],
        )

    @always_uncancelled
    async def find(self, job_id: str) -> Job | None:
        async with self._read() as connection:
            row = (await connection.execute(sa.select(jobs).where(jobs.c.id == job_id))).first()
        return _job(row) if row else None

    @always_uncancelled
    async def request(self, job_id: str) -> StoredRequest | None:
        asked = sa.select(requests.c.request, requests.c.parts).where(requests.c.job_id == job_id)
        placed = sa.select(request_parts.c.place, request_parts.c.hash)
        async with self._read() as connection:
            row = (await connection.execute(asked)).first()
            if row is None:
                return None
            places: dict[str, str] = {}
            if row.parts:
                found = await connection.execute(placed.where(request_parts.c.job_id == job_id))
                places = {place: name for place, name in found}
        return StoredRequest(row.request, places, len(places) == row.parts)

    @always_uncancelled
    async def used_bytes(self, owner: str, names: Collection[str]) -> Used:
        """Return the long texts in this owner's requests, each counted once."""
        theirs = sa.select(request_parts.c.hash).where(request_parts.c.owner == owner)
        goes_on = theirs.join(jobs, jobs.c.id == request_parts.c.job_id)
        goes_on = goes_on.where(jobs.c.state.not_in(FINAL))
        size = sa.func.coalesce(sa.func.sum(long_texts.c.bytes), 0)
        async with self._read() as connection:
            asked = (sa.select(size).where(long_texts.c.hash.in_(of)) for of in (theirs, goes_on))
            used, needed = [int((await connection.execute(one)).scalar_one()) for one in asked]
            had = await connection.execute(theirs.where(request_parts.c.hash.in_(names)))
            return Used(used, needed, {name for (name,) in had})

    @always_uncancelled
    async def cut_requests(self, owner: str | None, limit: int, before_ms: int | None) -> int:
        """Remove the long texts of ended jobs: the failed first, then the oldest. Only jobs of
        `owner` and jobs that ended before `before_ms`, if these are given. Returns how many
        requests were cut."""
        asked = (
            sa.select(request_parts.c.job_id)
            .join(jobs, jobs.c.id == request_parts.c.job_id)
            .where(jobs.c.state.in_(FINAL))
            .group_by(request_parts.c.job_id, jobs.c.state, jobs.c.finished_ms)
            .order_by(sa.case((jobs.c.state.in_(RETRYABLE), 0), else_=1), jobs.c.finished_ms)
            .limit(limit)
        )
        if owner is not None:
            asked = asked.where(request_parts.c.owner == owner)
        if before_ms is not None:
            asked = asked.where(jobs.c.finished_ms < before_ms)
        async with self._write() as connection:
            found = [job_id for (job_id,) in await connection.execute(asked)]
            gone = sa.delete(request_parts).where(request_parts.c.job_id.in_(found))
            await connection.execute(gone)
        return len(found)

    @always_uncancelled
    async def unused_long_texts(self, limit: int) -> list[str]:
        """Return long texts that no request has."""
        asked = sa.select(long_texts.c.hash).where(_unused()).limit(limit)
        async with self._read() as connection:
            return [name for (name,) in await connection.execute(asked)]

    @always_uncancelled
    async def known_long_texts(self, names: Collection[str]) -> set[str]:
        asked = sa.select(long_texts.c.hash).where(long_texts.c.hash.in_(names))
        async with self._read() as connection:
            return {name for (name,) in await connection.execute(asked)}

    @always_uncancelled
    async def drop_long_text(self, name: str) -> bool:
        """Forget a long text that no request has. Returns whether it is unknown now."""
        async with self._write() as connection:
            this = long_texts.c.hash == name
            await connection.execute(sa.delete(long_texts).where(this, _unused()))
            return (await connection.execute(sa.select(long_texts).where(this))).first() is None

    @always_uncancelled
    async def change(self, job: Job, before: Collection[State]) -> bool:
        """Replace the stored job by `job`. Returns False if it is in none of the states
        `before`."""
        values = _row(job)
        del values["id"]
        where = sa.and_(jobs.c.id == job.id, jobs.c.state.in_(before))
        async with self._write() as connection:
            done = await connection.execute(sa.update(jobs).where(where).values(values))
            if not done.rowcount:
                return False
            if job.final:
                await _note_webhook(connection, job)
                await _drop_long_texts(connection, job.id)
            else:
                await connection.execute(sa.delete(webhooks).where(webhooks.c.job_id == job.id))
        return True

    @always_uncancelled
    async def unfinished(self) -> list[Job]:
        """Return queued and running jobs, oldest first."""
        asked = sa.select(jobs).where(jobs.c.state.not_in(FINAL)).order_by(jobs.c.queued_ms)
        return await self._jobs(asked)

    @always_uncancelled
    async def ended_since(self, since_ms: int) -> list[Job]:
        asked = sa.select(jobs).where(jobs.c.state.in_(FINAL), jobs.c.finished_ms >= since_ms)
        return await self._jobs(asked.order_by(jobs.c.finished_ms))

    @always_uncancelled
    async def ended_before(self, before_ms: int, limit: int) -> list[Job]:
        asked = sa.select(jobs).where(jobs.c.state.in_(FINAL), jobs.c.finished_ms < before_ms)
        return await self._jobs(asked.order_by(jobs.c.finished_ms).limit(limit))

    @always_uncancelled
    async def unfruitful_of(self, owner: str, limit: int) -> list[Job]:
        """Return the jobs that ended without a clip, oldest first."""
        states = [state for state in FINAL if state != "completed"]
        asked = sa.select(jobs).where(jobs.c.state.in_(states), jobs.c.owner == owner)
        return await self._jobs(asked.order_by(jobs.c.finished_ms).limit(limit))

    @always_uncancelled
    async def of_owner(
        self,
        door: str,
        owner: str,
        states: Collection[State] | None,
        model: str | None,
        limit: int,
        after: Job | None,
    ) -> list[Job]:
        """Return jobs, newest first, from the one after `after`."""
        asked = sa.select(jobs).where(jobs.c.door == door, jobs.c.owner == owner)
        if states is not None:
            asked = asked.where(jobs.c.state.in_(states))
        if model is not None:
            asked = asked.where(jobs.c.model == model)
        if after is not None:
            asked = asked.where(
                sa.tuple_(jobs.c.created_ms, jobs.c.id) < (after.created_ms, after.id)
            )
        asked = asked.order_by(jobs.c.created_ms.desc(), jobs.c.id.desc())
        return await self._jobs(asked.limit(limit))

    @always_uncancelled
    async def counts(self) -> list[tuple[Any, ...]]:
        """Return door, owner, model and state, with the number of jobs and the number of
        retries."""
        group = (jobs.c.door, jobs.c.owner, jobs.c.model, jobs.c.state)
        asked = sa.select(*group, sa.func.count(), sa.func.sum(jobs.c.retries)).group_by(*group)
        async with self._read() as connection:
            found = await connection.execute(asked)
            return [(*of, count, int(retries)) for *of, count, retries in found]

    @always_uncancelled
    async def remove(self, job_ids: Collection[str]) -> set[str]:
        """Remove jobs with all that belongs to them. Returns the ids of those that were there."""
        async with self._write() as connection:
            for table in (requests, webhooks):
                await connection.execute(sa.delete(table).where(table.c.job_id.in_(job_ids)))
            gone = sa.delete(jobs).where(jobs.c.id.in_(job_ids)).returning(jobs.c.id)
            return {job_id for (job_id,) in await connection.execute(gone)}

    @always_uncancelled
    async def due_webhooks(self, now_ms: int, limit: int) -> list[tuple[str, int]]:
        """Return job ids with the number of tries so far: the first of every owner, then the second
        of each, and so on, so that no owner waits for another owner's receivers. Raises `Refusal`
        if this gateway no longer owns the jobs."""
        self._ownership.require()
        turn = sa.func.row_number().over(
            partition_by=jobs.c.owner, order_by=(webhooks.c.next_ms, webhooks.c.job_id)
        )
        asked = (
            sa.select(webhooks.c.job_id, webhooks.c.tries)
            .join(jobs, jobs.c.id == webhooks.c.job_id)
            .where(webhooks.c.next_ms <= now_ms)
            .order_by(turn, webhooks.c.next_ms)
            .limit(limit)
        )
        async with self._read() as connection:
            rows = await connection.execute(asked)
            return [(job_id, tries) for job_id, tries in rows]

    @always_uncancelled
    async def postpone_webhook(self, job_id: str, tries: int, next_ms: int) -> None:
        change = sa.update(webhooks).where(webhooks.c.job_id == job_id)
        async with self._write() as connection:
            await connection.execute(change.values(tries=tries, next_ms=next_ms))

    @always_uncancelled
    async def drop_webhook(self, job_id: str) -> None:
        async with self._write() as connection:
            await connection.execute(sa.delete(webhooks).where(webhooks.c.job_id == job_id))
            await _drop_long_texts(connection, job_id)

    @always_uncancelled
    async def fact(self, name: str, new: str) -> str:
        """Return the value stored under `name`. Stores `new` if there is none."""
        async with self._write() as connection:
            asked = sa.select(facts.c.value).where(facts.c.name == name)
            if (kept := (await connection.execute(asked)).scalar()) is not None:
                return str(kept)
            await connection.execute(sa.insert(facts).values(name=name, value=new))
            return new

    @always_uncancelled
    async def ping(self) -> None:
        """Raise an error if the database is unavailable."""
        async with self._read() as connection:
            await connection.execute(sa.select(1))

    async def _jobs(self, asked: sa.Select[Any]) -> list[Job]:
        async with self._read() as connection:
            return [_job(row) for row in await connection.execute(asked)]


@contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        log.error("the database failed: %s", error)
        raise Refusal(
            "unavailable", "The gateway cannot reach its database", _AWAY_SECONDS
        ) from error


async def _note_webhook(connection: AsyncConnection, job: Job) -> None:
    if job.final and job.webhook:
        row = {"job_id": job.id, "tries": 0, "next_ms": job.finished_ms}
        await connection.execute(sa.insert(webhooks).values(row))


def _unused() -> sa.ColumnElement[bool]:
    return ~sa.exists().where(request_parts.c.hash == long_texts.c.hash)


async def _drop_long_texts(connection: AsyncConnection, job_id: str) -> None:
    """Remove the long texts, mostly media, of a request that no run, retry or webhook needs. The
    rest of the request stays with its job."""
    over = sa.select(jobs.c.id).where(
        jobs.c.id == job_id,
        jobs.c.state.in_(_OVER),
        jobs.c.id.not_in(sa.select(webhooks.c.job_id)),
    )
    await connection.execute(sa.delete(request_parts).where(request_parts.c.job_id.in_(over)))


_OVER = tuple(state for state in FINAL if state not in RETRYABLE)
_KEPT = tuple(column.key for column in jobs.columns)


def _row(job: Job) -> dict[str, Any]:
    values = {name: _text(getattr(job, name)) for name in _KEPT}
    return values | {"payload": dict(job.payload)}


def _text(value: Any) -> Any:
    """A text without NUL, which Postgres refuses, so that a worker's odd sentence can be stored."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def _job(row: sa.Row[Any]) -> Job:
    return Job(**dict(zip(_KEPT, row, strict=True)))
