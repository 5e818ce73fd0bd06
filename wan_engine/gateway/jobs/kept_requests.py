"""Keeps the whole requests of jobs for as long as they may be needed, within the quota of each key.

A request without its long texts, mostly media, is kept as long as its job. The long texts are
removed when the job is completed or cancelled. Those that a waiting or running job needs are never
removed. If a key has no room, those of its failed jobs are removed first, then those of its oldest
ended jobs. After some time, those of all ended jobs are removed.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from weakref import WeakValueDictionary

from sqlalchemy.exc import SQLAlchemyError

from wan_engine.gateway.job import Job
from wan_engine.gateway.jobs.long_texts import LongTexts
from wan_engine.gateway.jobs.request_parts import LongText, RequestParts, joined, verified_text
from wan_engine.gateway.jobs.store import NewRow, Store, StoredRequest
from wan_engine.gateway.refusals import Refusal
from wan_engine.gateway.uncancelled import always_uncancelled

log = logging.getLogger(__name__)

_CUT_AT_ONCE = 20
_UNUSED_AT_ONCE = 1000
_AT_ONCE = 4  # each needs memory, and one of eight Postgres connections
_AGAIN_SECONDS = 60


class Requests:
    """Stores requests. `max_bytes` is the quota of one key. Every call raises `Refusal`
    "unavailable" while the database or the disk is unavailable."""

    def __init__(self, store: Store, long_texts: LongTexts, max_bytes: int) -> None:
        self._store = store
        self._long_texts = long_texts
        self._max_bytes = max_bytes
        self._needed: Counter[str] = Counter()
        self._coming: Counter[str] = Counter()
        self._strays: set[str] = set()
        self._moving = asyncio.Semaphore(_AT_ONCE)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def add(self, owner: str, new: Collection[tuple[Job, RequestParts]]) -> None:
        """Store jobs of one owner with their requests, all or none. Raises `Refusal` "queue_full"
        and "too_large" if the owner has no room.

        A job that was refused is never rendered. If there is no room, it is stored without its
        whole request.
        """
        long_texts = {one.hash: one for _, parts in new for one in parts.long_texts.values()}
        if not long_texts:
            await self._store.add(_row(job, parts, keep_texts=True) for job, parts in new)
            return
        try:
            async with self._kept(owner, long_texts):
                await self._store.add(_row(job, parts, keep_texts=True) for job, parts in new)
        except Refusal:
            if not all(job.final for job, _ in new):
                raise
            await self._store.add(_row(job, parts, keep_texts=False) for job, parts in new)

    async def shown(self, job_id: str) -> dict[str, Any]:
        """Return the request as it was made, or the parts of it that are kept."""
        stored = await self._store.request(job_id)
        return {} if stored is None else await self._joined(job_id, stored) or stored.row

    async def row(self, job_id: str) -> tuple[dict[str, Any], bool]:
        """Return the request with its long texts cut to their beginnings, and whether all
        of them are kept as they were sent."""
        stored = await self._store.request(job_id)
        return ({}, False) if stored is None else (stored.row, stored.all_kept)

    async def whole_request(self, job_id: str) -> dict[str, Any] | None:
        """The request as it was made. None if it is no longer kept."""
        stored = await self._store.request(job_id)
        return None if stored is None else await self._joined(job_id, stored)

    async def is_all_kept(self, job_id: str) -> bool:
        """Whether `whole_request` returns a request."""
        stored = await self._store.request(job_id)
        return stored is not None and stored.all_kept

    async def cut(self, before_ms: int) -> None:
        """Remove long texts of jobs that ended before, and texts that no request has."""
        while await self._store.cut_requests(None, _CUT_AT_ONCE, before_ms):
            pass
        await self.remove_unused()

    async def remove_unused(self) -> int:
        """Remove long texts that no request has. Returns how many."""
        unused = await self._store.unused_long_texts(_UNUSED_AT_ONCE)
        gone = 0
        for name in {*unused, *self._strays}:
            gone += await self._remove(name)
            self._strays.discard(name)
        return gone

    async def remove_strays(self) -> None:
        """Remove bytes that the database does not know, left by a gateway that died while it stored
        them."""
        with _telling():
            names = await self._long_texts.names()
        for at in range(0, len(names), _UNUSED_AT_ONCE):
            some = names[at : at + _UNUSED_AT_ONCE]
            for name in set(some) - await self._store.known_long_texts(some):
                await self._remove(name)

    # --- bytes -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _kept(self, owner: str, long_texts: Mapping[str, LongText]) -> AsyncIterator[None]:
        """Keep all of these texts while the context is open, including those that no request has
        yet."""
        size = 0
        self._needed.update(long_texts.keys())
        try:
            size = await self._make_room(owner, long_texts)
            async with self._lock(f"key {owner}"):  # so that nobody waits for all texts of one key
                for name, text in long_texts.items():
                    with _telling():
                        await self._put(name, text)
            yield
        except BaseException:
            self._strays.update(long_texts)
            raise
        finally:
            self._coming[owner] -= size
            self._needed.subtract(long_texts.keys())
            self._needed += Counter()  # remove the texts that are at 0
            self._coming += Counter()

    async def _put(self, name: str, text: LongText) -> None:
        while True:
            try:
                async with self._lock(name), self._moving:
                    data = await asyncio.to_thread(text.data)
                    return await self._long_texts.put(name, data)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                # The disk is shared, also by texts that no request may ever need.
                freed = await self.remove_unused()
                if not freed and not await self._store.cut_requests(None, _CUT_AT_ONCE, None):
                    raise

    async def _make_room(self, owner: str, long_texts: Mapping[str, LongText]) -> int:
        """Return the bytes that are new for this owner, and count them as arriving. Raises
        `Refusal`."""
        sizes = {name: text.size for name, text in long_texts.items()}
        cut = 0
        while True:
            coming = self._coming[owner]
            used = await self._store.used_bytes(owner, sizes)
            size = sum(sizes[name] for name in sizes if name not in used.had)
            # Texts that arrived in the meantime may be missing from both.
            size_and_coming = size + max(coming, self._coming[owner])
            if used.bytes + size_and_coming <= self._max_bytes:
                break
            if size > self._max_bytes:
                most = f"{self._max_bytes / 2**20:g} MB"
                raise Refusal("too_large", f"The pictures and sounds are larger than {most}")
            full = used.needed_bytes + size_and_coming > self._max_bytes
            if full or not await self._store.cut_requests(owner, _CUT_AT_ONCE, None):
                raise Refusal("queue_full", _NO_ROOM, _AGAIN_SECONDS)
            cut += 1
        self._coming[owner] += size
        if cut:
            await self.remove_unused()
        return size

    async def _joined(self, job_id: str, stored: StoredRequest) -> dict[str, Any] | None:
        if not stored.all_kept:
            return None
        texts = {}
        for place, name in stored.places.items():
            if (text := await self._text(name)) is None:
                log.error("a part of the request of job %s is missing or damaged", job_id)
                return None
            texts[place] = text
        return await asyncio.to_thread(joined, stored.row, texts) if texts else stored.row

    async def _text(self, name: str) -> str | None:
        with _telling():
            async with self._moving:
                data = await self._long_texts.get(name)
            if data is None:
                return None
            if (text := await asyncio.to_thread(verified_text, name, data)) is None:
                async with self._lock(name):  # the next request with it stores it again
                    await self._long_texts.remove(name)
            return text

    @always_uncancelled
    async def _remove(self, name: str) -> bool:
        async with self._lock(name):
            # A request that needs the text now waits for the lock, and then finds that it is gone.
            if name in self._needed or not await self._store.drop_long_text(name):
                return False
            with _telling():
                await self._long_texts.remove(name)
            return True

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())


_NO_ROOM = "Waiting jobs of this key have as many pictures and sounds as allowed, try again later"


def _row(job: Job, parts: RequestParts, *, keep_texts: bool) -> NewRow:
    return job, parts.row, len(parts.long_texts), parts.long_texts if keep_texts else {}


@contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        log.error("a request's long texts cannot be stored or read: %s", error)
        sentence = "The gateway cannot store or read pictures and sounds now, try again later"
        raise Refusal("unavailable", sentence, _AGAIN_SECONDS) from error
