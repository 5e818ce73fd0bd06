"""Sends the result of each job to the URL that its caller gave: up to three tries, also after a
restart.

Runpod documents that 200 counts as an answer, and that there are two more tries ten seconds apart.
Addresses that are not public are refused, as for media, and redirects are not followed.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from wan_engine.control import Control
from wan_engine.errors import InvalidMedia
from wan_engine.gateway.door import Door
from wan_engine.gateway.job import now_ms
from wan_engine.gateway.jobs.service import Jobs
from wan_engine.gateway.jobs.store import Store
from wan_engine.gateway.metrics import Metrics
from wan_engine.gateway.refusals import Refusal
from wan_engine.media.fetch import FetchLimits, post

log = logging.getLogger(__name__)

_TRIES = 3
_AT_ONCE = 8
_LOOK_SECONDS = 0.5
_ANSWER_SECONDS = 10.0
_ANSWER_MAX_BYTES = 64 * 1024

_Telling = dict[asyncio.Task[None], str]
"""The deliveries in progress, and the ids of their jobs."""


class Webhooks:
    def __init__(
        self,
        jobs: Jobs,
        store: Store,
        metrics: Metrics,
        *,
        allow_private: bool,
        again_seconds: float = 10.0,
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._metrics = metrics
        self._limits = FetchLimits(_ANSWER_MAX_BYTES, _ANSWER_SECONDS, allow_private)
        self._again_ms = round(again_seconds * 1000)
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="webhook")

    async def run(self, doors: Sequence[Door]) -> None:
        """Run until cancelled."""
        by_name = {door.name: door for door in doors}
        telling: _Telling = {}
        try:
            while True:
                try:
                    await self._begin(telling, by_name)
                    await self._look_at_ends(telling)
                except Refusal as refusal:  # the database is unavailable
                    log.warning("no webhooks are sent: %s", refusal.message)
                    await asyncio.sleep(_LOOK_SECONDS)
        finally:
            for task in telling:
                task.cancel()
            if telling:  # before the database is closed
                await asyncio.wait(telling)
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _begin(self, telling: _Telling, by_name: dict[str, Door]) -> None:
        """Begin deliveries that are due, while there is a place. A running delivery is due as well,
        so it counts as the first one of its owner: an owner with slow receivers gets the next place
        last."""
        free = _AT_ONCE - len(telling)
        if not free:
            return
        due = await self._store.due_webhooks(now_ms(), _AT_ONCE + len(telling))
        begun = set(telling.values())
        for job_id, tries in [one for one in due if one[0] not in begun][:free]:
            telling[asyncio.create_task(self._tell(job_id, tries, by_name))] = job_id

    async def _look_at_ends(self, telling: _Telling) -> None:
        """Wait until a delivery has ended, or for a while."""
        if not telling:
            await asyncio.sleep(_LOOK_SECONDS)
            return
        first = asyncio.FIRST_COMPLETED
        ended, _ = await asyncio.wait(telling, timeout=_LOOK_SECONDS, return_when=first)
        for task in ended:
            await self._look_at(telling.pop(task), task.exception())

    def _post(self, url: str, body: object) -> int:
        # The body may contain a picture, so this thread encodes it.
        return post(url, json.dumps(body).encode(), self._limits, Control())

    async def _look_at(self, job_id: str, end: BaseException | None) -> None:
        """Give up a delivery that failed with an unexpected error, because it would fail again.
        Raises `Refusal`."""
        if isinstance(end, Refusal):
            raise end
        if end is not None:
            log.error("webhook of job %s cannot be made", job_id, exc_info=end)
            self._metrics.webhook("given up")
            await self._store.drop_webhook(job_id)

    async def _tell(self, job_id: str, tries: int, doors: dict[str, Door]) -> None:
        job = await self._jobs.get(job_id)
        door = doors.get(job.door) if job else None
        if job is None or door is None or door.webhook_body is None or job.webhook is None:
            await self._store.drop_webhook(job_id)
            return
        body = door.webhook_body(job, await self._jobs.request(job_id))
        try:
            status = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._post, job.webhook, body
            )
        except InvalidMedia as error:
            outcome = error.why
        else:
            outcome = "" if status == 200 else f"it answered {status}"
        if not outcome:
            self._metrics.webhook("delivered")
            await self._store.drop_webhook(job_id)
        elif tries + 1 >= _TRIES:
            log.warning("webhook of job %s given up: %s", job_id, outcome)
            self._metrics.webhook("given up")
            await self._store.drop_webhook(job_id)
        else:
            log.info("webhook of job %s not delivered: %s", job_id, outcome)
            self._metrics.webhook("failed")
            await self._store.postpone_webhook(job_id, tries + 1, now_ms() + self._again_ms)
