"""Builds answers with many jobs page by page, so that other callers need not wait: one page at a
time, and one list per owner."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any
from weakref import WeakValueDictionary

from wan_engine.gateway.job import Job

_One = dict[str, Any]


class Lists:
    def __init__(self) -> None:
        self._page = asyncio.Lock()
        self._owners: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def encoded(
        self,
        owner: str,
        pages: AsyncIterator[list[Job]],
        shown: Callable[[Job], _One | None],
    ) -> list[bytes]:
        """Encode each job as JSON. Jobs for which `shown` returns nothing are left out."""
        found: list[bytes] = []
        async with self._owners.setdefault(owner, asyncio.Lock()):
            while True:
                async with self._page:
                    page = await anext(pages, None)
                    if page is None:
                        return found
                    bodies = (body for job in page if (body := shown(job)) is not None)
                    found += map(_encoded, bodies)


def _encoded(body: _One) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
