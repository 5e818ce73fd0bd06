"""What is done by the clock: jobs whose time is over end, and old ones are forgotten."""

from __future__ import annotations

import asyncio
import logging
import time

from wan_engine.gateway.job import DAY_SECONDS, now_ms
from wan_engine.gateway.jobs import Jobs
from wan_engine.gateway.links import Links
from wan_engine.gateway.problems import Problem
from wan_engine.gateway.store import Store

log = logging.getLogger(__name__)

_EXPIRE_SECONDS = 0.5
_FORGET_SECONDS = 60.0
_BATCH = 100


async def sweep(jobs: Jobs, store: Store, links: Links, keep_days: float) -> None:
    """For ever, until cancelled."""
    forgot_at = 0.0
    while True:
        try:
            for job in jobs.expired():
                await jobs.expire(job)
            if time.monotonic() - forgot_at > _FORGET_SECONDS:
                await forget(jobs, store, links, now_ms() - round(keep_days * DAY_SECONDS * 1000))
                forgot_at = time.monotonic()
        except Problem as problem:  # the database is away
            log.warning("not swept: %s", problem.message)
        await asyncio.sleep(_EXPIRE_SECONDS)


async def forget(jobs: Jobs, store: Store, links: Links, before_ms: int) -> int:
    """Remove jobs that ended before `before_ms`, and their clips on this machine. Returns how
    many."""
    count = 0
    while old := await store.ended_before(before_ms, _BATCH):
        for job in old:
            await asyncio.to_thread(links.remove, job)
        ids = [job.id for job in old]
        await store.remove(ids)
        jobs.forget(ids)
        count += len(old)
    if count:
        log.info("forgot %d jobs that ended long ago", count)
    return count
