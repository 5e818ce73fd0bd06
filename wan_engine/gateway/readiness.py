"""Tells whether this machine could render and store a job now."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from wan_engine.errors import EngineError
from wan_engine.runtime import scratch
from wan_engine.settings import Settings
from wan_engine.storage import open_storage

log = logging.getLogger(__name__)

_DISK_SECONDS = 5.0
_STORAGE_SECONDS = 60.0  # writes, reads and removes a small object


@dataclass
class _Look:
    """One check. `lacking` is for strangers, because anybody may ask; the log has the details."""

    lacking: str
    check: Callable[[], object]
    every_seconds: float
    failing: bool = False


class Readiness:
    """The checks of this machine, if it renders. Another machine is checked by its own worker."""

    def __init__(self, settings: Settings, *, here: bool) -> None:
        self._looks = (
            [
                _Look("there is no room for a job's files", self._scratch, _DISK_SECONDS),
                _Look("clips cannot be stored", self._storage, _STORAGE_SECONDS),
            ]
            if here
            else []
        )
        self._settings = settings

    def lacking(self) -> list[str]:
        """The reason why a job would fail; empty if it would not."""
        return [look.lacking for look in self._looks if look.failing]

    async def watch(self) -> None:
        """Check until cancelled. The checks run separately, because one may hang."""
        await asyncio.gather(*(self._repeat(look) for look in self._looks))

    async def _repeat(self, look: _Look) -> None:
        while True:
            await self._look(look)
            await asyncio.sleep(_DISK_SECONDS if look.failing else look.every_seconds)

    async def _look(self, look: _Look) -> None:
        before, failing = look.failing, False
        try:
            await asyncio.to_thread(look.check)
        except EngineError as error:
            failing = True
            if not before:
                log.error("not ready: %s: %s", look.lacking, error)
        except Exception:  # of boto or the system; the watch must go on, whatever a check raises
            failing = True
            log.exception("not ready: %s", look.lacking)
        look.failing = failing  # only now, because a check may take a minute
        if before and not failing:
            log.info("ready again, after: %s", look.lacking)

    def _scratch(self) -> object:
        return scratch.check(self._settings)

    def _storage(self) -> object:
        return open_storage(self._settings).check()
