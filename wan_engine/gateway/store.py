"""What is asked of the database, in its words. Each method is one transaction, which is finished
also when who waits for it is cancelled.

A change names the states that it may start from, and happens in the database or not at all, so a
cancel and a result that come at once cannot both win.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from wan_engine.gateway.brief import brief
from wan_engine.gateway.database import Database, facts, jobs, requests, webhooks
from wan_engine.gateway.job import FINAL, RETRYABLE, Job, State
from wan_engine.gateway.problems import Problem
from wan_engine.gateway.whole import always_whole

log = logging.getLogger(__name__)

_AWAY_SECONDS = 5


class Store:
    """Raises `Problem` "unavailable" while the database is away."""

    def __init__(self, database: Database) -> None:
        self._engine, self._ownership = database.engine, database.ownership
        # SQLite has one writer; who waits for it here does not sleep in a thread.
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

    @always_whole
    async def add(self, new: Iterable[tuple[Job, Mapping[str, Any]]]) -> None:
        """Jobs with their requests, all or none; the webhooks of those that have ended as well.

        Of the request of a job that has been refused only what is small is kept, or anyone could
        fill the disk without a place in the queue.
        """
        new = list(new)
        async with self._write() as connection:
            await connection.execute(sa.insert(jobs), [_row(job) for job, _ in new])
            await connection.execute(
                sa.insert(requests),
                [
                    {"job_id": job.id, "request": brief(request) if job.final else dict(request)}
                    for job, request in new
                ],
            )
            for job, _ in new:
                await _note_webhook(connection, job)

    @always_whole
    async def find(self, job_id: str) -> Job | None:
        async with self._read() as connection:
            row = (await connection.execute(sa.select(jobs).where(jobs.c.id == job_id))).first()
        return _job(row) if row else None

    @always_whole
    async def request(self, job_id: str) -> dict[str, Any] | None:
        asked = sa.select(requests.c.request).where(requests.c.job_id == job_id)
        async with self._read() as connection:
            return (await connection.execute(asked)).scalar()

    @always_whole
    async def change(self, job: Job, before: Collection[State]) -> bool:
        """Make the stored job `job`; False when it is in none of the states `before`."""
        values = _row(job)
        del values["id"]
        where = sa.and_(jobs.c.id == job.id, jobs.c.state.in_(before))
        async with self._write() as connection:
            done = await connection.execute(sa.update(jobs).where(where).values(values))
            if not done.rowcount:
                return False
            if job.final:
                await _note_webhook(connection, job)
                await _drop_request(connection, job.id)
            else:
                await connection.execute(sa.delete(webhooks).where(webhooks.c.job_id == job.id))
        return True

    @always_whole
    async def unfinished(self) -> list[Job]:
        """Queued and running, the oldest first."""
        asked = sa.select(jobs).where(jobs.c.state.not_in(FINAL)).order_by(jobs.c.queued_ms)
        return await self._jobs(asked)

    @always_whole
    async def ended_since(self, since_ms: int) -> list[Job]:
        asked = sa.select(jobs).where(jobs.c.state.in_(FINAL), jobs.c.finished_ms >= since_ms)
        return await self._jobs(asked.order_by(jobs.c.finished_ms))

    @always_whole
    async def ended_before(self, before_ms: int, limit: int) -> list[Job]:
        asked = sa.select(jobs).where(jobs.c.state.in_(FINAL), jobs.c.finished_ms < before_ms)
        return await self._jobs(asked.order_by(jobs.c.finished_ms).limit(limit))

    @always_whole
    async def of_owner(
        self,
        door: str,
        owner: str,
        states: Collection[State] | None,
        model: str | None,
        limit: int | None,
    ) -> list[Job]:
        """The newest first."""
        asked = sa.select(jobs).where(jobs.c.door == door, jobs.c.owner == owner)
        if states is not None:
            asked = asked.where(jobs.c.state.in_(states))
        if model is not None:
            asked = asked.where(jobs.c.model == model)
        return await self._jobs(asked.order_by(jobs.c.created_ms.desc()).limit(limit))

    @always_whole
    async def counts(self, door: str | None, model: str | None) -> tuple[dict[str, int], int]:
        """Jobs by state, and how often one was retried."""
        asked = sa.select(jobs.c.state, sa.func.count(), sa.func.sum(jobs.c.retries))
        if door is not None:
            asked = asked.where(jobs.c.door == door)
        if model is not None:
            asked = asked.where(jobs.c.model == model)
        async with self._read() as connection:
            rows = (await connection.execute(asked.group_by(jobs.c.state))).all()
        return {state: count for state, count, _ in rows}, sum(int(retries) for *_, retries in rows)

    @always_whole
    async def remove(self, job_ids: Collection[str]) -> None:
        async with self._write() as connection:
            for table, column in ((requests, "job_id"), (webhooks, "job_id"), (jobs, "id")):
                await connection.execute(sa.delete(table).where(table.c[column].in_(job_ids)))

    @always_whole
    async def due_webhooks(self, now_ms: int, limit: int) -> list[tuple[str, int]]:
        """Job id and tries so far: the first of every owner, then the second of each, and so on,
        so that nobody waits for another's receivers. Raises `Problem` where the jobs are not ours
        any more."""
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

    @always_whole
    async def postpone_webhook(self, job_id: str, tries: int, next_ms: int) -> None:
        change = sa.update(webhooks).where(webhooks.c.job_id == job_id)
        async with self._write() as connection:
            await connection.execute(change.values(tries=tries, next_ms=next_ms))

    @always_whole
    async def drop_webhook(self, job_id: str) -> None:
        async with self._write() as connection:
            await connection.execute(sa.delete(webhooks).where(webhooks.c.job_id == job_id))
            await _drop_request(connection, job_id)

    @always_whole
    async def fact(self, name: str, new: str) -> str:
        """What is kept under `name`: `new`, unless there was something before."""
        async with self._write() as connection:
            asked = sa.select(facts.c.value).where(facts.c.name == name)
            if (kept := (await connection.execute(asked)).scalar()) is not None:
                return str(kept)
            await connection.execute(sa.insert(facts).values(name=name, value=new))
            return new

    @always_whole
    async def ping(self) -> None:
        """Nothing, unless the database is away."""
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
        raise Problem(
            "unavailable", "The gateway cannot reach its database", _AWAY_SECONDS
        ) from error


async def _note_webhook(connection: AsyncConnection, job: Job) -> None:
    if job.final and job.webhook:
        row = {"job_id": job.id, "tries": 0, "next_ms": job.finished_ms}
        await connection.execute(sa.insert(webhooks).values(row))


async def _drop_request(connection: AsyncConnection, job_id: str) -> None:
    """Once nobody can need it: neither a run, nor a retry, nor a webhook."""
    over = sa.select(jobs.c.id).where(
        jobs.c.id == job_id,
        jobs.c.state.in_(_OVER),
        jobs.c.id.not_in(sa.select(webhooks.c.job_id)),
    )
    await connection.execute(sa.delete(requests).where(requests.c.job_id.in_(over)))


_OVER = tuple(state for state in FINAL if state not in RETRYABLE)
_KEPT = tuple(column.name for column in jobs.columns)


def _row(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in _KEPT} | {"payload": dict(job.payload)}


def _job(row: sa.Row[Any]) -> Job:
    return Job(**row._mapping)
