"""Makes sure that one gateway at a time owns the jobs of a database, by a lock and an epoch.

The lock of a SQLite file belongs to the process, and is released when the process ends. The lock of
Postgres belongs to a connection, which may break while its gateway continues. So each new owner
increments an epoch, and every change of a job checks in its own transaction that the epoch is still
the owner's. A gateway that has lost the lock can change nothing.

    owner  |- confirms its lock each second -x  cannot: ends its work within _LEASE_SECONDS
    next                                     |- has the lock, waits _TAKEOVER_SECONDS -|- works
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from wan_engine.gateway.refusals import Refusal

log = logging.getLogger(__name__)

_FACTS = sa.table("facts", sa.column("name"), sa.column("value"))  # defined in database.py
_ADVISORY_LOCK = 0x57414E  # any number; it identifies this lock
_CONFIRM_SECONDS = 1.0
_ANSWER_SECONDS = 2.0
_LEASE_SECONDS = 4.0
_TAKEOVER_SECONDS = 7.0  # more than a lease, and the time that its work takes to be killed
_EPOCH, _RELEASED = "epoch", "released epoch"
_AWAY_SECONDS = 5

_LOST = "another gateway has taken over this database"
_UNSURE = "the lock of the database is lost"


class Ownership:
    """Holds the lock. `on_loss` is called when work must end at once, `on_return` when it may begin
    again.

    `why_not` is the reason why nothing may begin or end. It is None while this gateway owns the
    jobs.
    """

    def __init__(self, engine: AsyncEngine, *, shared: bool) -> None:
        self.why_not: str | None = None
        self.on_loss: Callable[[str], None] = lambda why: None
        self.on_return: Callable[[], None] = lambda: None
        self._engine = engine
        self._shared = shared
        self._epoch = 0
        self._connection: AsyncConnection | None = None
        self._confirmed_at = 0.0

    @property
    def lost(self) -> bool:
        """Whether another gateway owns the jobs now."""
        return self.why_not == _LOST

    async def fence(self, connection: AsyncConnection) -> None:
        """Raise `Refusal` unless this gateway owns the jobs. No other gateway can take them until
        the transaction of `connection` has ended."""
        if not self._shared:
            return
        if await _number(connection, _EPOCH, read=True) != self._epoch:
            self._lose(_LOST)
        self.require()

    def require(self) -> None:
        """Raise `Refusal` unless this gateway owns the jobs, without asking the database."""
        if self.why_not is not None:
            raise Refusal("unavailable", "The gateway is being replaced", _AWAY_SECONDS)

    async def try_lock(self) -> bool:
        """Whether the lock is held, after trying to take it if it was not."""
        if self._connection is not None:
            await self._connection.execute(sa.select(1))
            return True
        connection = await self._engine.connect()
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        asked = sa.select(sa.func.pg_try_advisory_lock(_ADVISORY_LOCK))
        if (await connection.execute(asked)).scalar():
            self._connection = connection
            return True
        await connection.close()
        return False

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Begin a new epoch once the work of the previous owner has surely ended, and confirm the
        lock meanwhile. Requires the lock and the tables."""
        if not self._shared:
            yield
            return
        self._confirmed_at = asyncio.get_running_loop().time()
        keeper = asyncio.create_task(self._keep(), name="database lock")
        try:
            if await self._begin():
                log.info("the previous gateway was killed: waiting until its work has surely ended")
                await asyncio.sleep(_TAKEOVER_SECONDS)
            yield
            await self._release()
        finally:
            keeper.cancel()
            await asyncio.wait([keeper])
            await self.unlock()

    async def unlock(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(SQLAlchemyError, OSError):
                await connection.invalidate()
                await connection.close()

    async def _begin(self) -> bool:
        """Increment the epoch. Returns whether the previous owner may still be working."""
        async with self._engine.begin() as connection:
            before = await _number(connection, _EPOCH)
            released = await _number(connection, _RELEASED)
            self._epoch = before + 1
            await _put(connection, _EPOCH, self._epoch)
        return before != released

    async def _release(self) -> None:
        """Record that no work of this epoch is running."""
        with suppress(SQLAlchemyError, OSError):
            async with self._engine.begin() as connection:
                if await _number(connection, _EPOCH) == self._epoch:
                    await _put(connection, _RELEASED, self._epoch)

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.lost:
            await asyncio.sleep(_CONFIRM_SECONDS)
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    held = await self._confirm()
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.warning("the lock of the database is not confirmed: %s", type(error).__name__)
                await self.unlock()
                if loop.time() - self._confirmed_at > _LEASE_SECONDS:
                    self._lose(_UNSURE)
                continue
            if not held:
                self._lose(_LOST)
                return
            self._confirmed_at = loop.time()
            if self.why_not is not None:
                log.warning("the lock of the database is held again")
                self.why_not = None
                self.on_return()

    async def _confirm(self) -> bool:
        """Whether this gateway still owns the jobs: it holds the lock, and no other gateway had it
        in between."""
        had = self._connection is not None
        if not await self.try_lock():
            return False
        if had:
            return True
        async with self._engine.connect() as connection:
            return await _number(connection, _EPOCH) == self._epoch

    def _lose(self, why: str) -> None:
        if self.why_not in (why, _LOST):
            return
        log.critical("%s: this gateway stops all work", why)
        self.why_not = why
        self.on_loss(why)


async def _number(connection: AsyncConnection, name: str, *, read: bool = False) -> int:
    """Return a fact that is a number, or 0 if it is not stored. With `read`, the row is locked for
    reading, so that nobody changes it meanwhile."""
    asked = sa.select(_FACTS.c.value).where(_FACTS.c.name == name)
    if read:
        asked = asked.with_for_update(read=True)
    return int((await connection.execute(asked)).scalar() or 0)


async def _put(connection: AsyncConnection, name: str, value: int) -> None:
    changed = sa.update(_FACTS).where(_FACTS.c.name == name).values(value=str(value))
    if not (await connection.execute(changed)).rowcount:
        await connection.execute(sa.insert(_FACTS).values(name=name, value=str(value)))
