"""Cleans up at fixed times: ends jobs that ran out of time, deletes old ones, and removes media
that no request needs."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence

from wan_engine.gateway.job import DAY_SECONDS, Job, now_ms
from wan_engine.gateway.jobs.kept_requests import Requests
from wan_engine.gateway.jobs.service import Jobs
from wan_engine.gateway.jobs.store import Store
from wan_engine.gateway.links import Links
from wan_engine.gateway.refusals import Refusal
from wan_engine.settings import Settings

log = logging.getLogger(__name__)

_EXPIRE_SECONDS = 0.5
_UNUSED_SECONDS = 5.0
_FORGET_SECONDS = 60.0
_STRAYS_SECONDS = 3600.0
_BATCH = 100
_UNFRUITFUL_OF_OWNER = 20_000


async def sweep(
    jobs: Jobs, store: Store, requests: Requests, links: Links, settings: Settings
) -> None:
    """Run until cancelled."""
    strays, old, unused = map(_Each, (_STRAYS_SECONDS, _FORGET_SECONDS, _UNUSED_SECONDS))
    while True:
        try:
            if strays.due():
                await requests.remove_strays()
            for job in jobs.expired():
                await jobs.expire(job)
            if old.due():
                await forget(jobs, store, links, _days_ago(settings.keep_jobs_days))
                await forget_unfruitful(jobs, store, links, _UNFRUITFUL_OF_OWNER)
                await requests.cut(_days_ago(settings.media_days))
            if unused.due():
                await requests.remove_unused()
        except Refusal as refusal:  # the database is unavailable
            log.warning("clean-up skipped: %s", refusal.message)
        await asyncio.sleep(_EXPIRE_SECONDS)


class _Each:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = -math.inf

    def due(self) -> bool:
        """Whether this many seconds have passed since it was last due."""
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


def _days_ago(days: float) -> int:
    return now_ms() - round(days * DAY_SECONDS * 1000)


async def forget(jobs: Jobs, store: Store, links: Links, before_ms: int) -> int:
    """Delete jobs that ended before `before_ms`, and their clips on this machine. Returns their
    number."""
    count = 0
    while old := await store.ended_before(before_ms, _BATCH):
        await _remove(old, jobs, links)
        count += len(old)
    if count:
        log.info("deleted %d old jobs", count)
    return count


async def forget_unfruitful(jobs: Jobs, store: Store, links: Links, most: int) -> None:
    """Keep only the newest `most` of each owner's jobs that ended without a clip, so that a key
    with hundreds of refused jobs per second does not fill the disk."""
    for owner, count in jobs.unfruitful().items():
        while count > most:
            old = await store.unfruitful_of(owner, min(_BATCH, count - most))
            if not old:
                break
            await _remove(old, jobs, links)
            count -= len(old)


async def _remove(old: Sequence[Job], jobs: Jobs, links: Links) -> None:
    for job in old:
        await asyncio.to_thread(links.remove, job)
    await jobs.remove(*old)
