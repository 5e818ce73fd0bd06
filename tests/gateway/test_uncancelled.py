"""Work that finishes even if its caller is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from wan_engine.gateway.uncancelled import always_uncancelled, uncancelled


def test_a_cancelled_caller_waits_for_the_end_of_what_it_began() -> None:
    async def line() -> None:
        seen = []

        async def work() -> str:
            seen.append("begun")
            await asyncio.sleep(0.05)
            seen.append("finished")
            return "done"

        assert await uncancelled(work()) == "done"
        seen.clear()
        waiting = asyncio.create_task(uncancelled(work()))
        while not seen:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert seen == ["begun", "finished"]

    asyncio.run(line())


def test_an_error_reaches_the_caller_and_a_method_keeps_its_arguments() -> None:
    class Store:
        @always_uncancelled
        async def half(self, number: int, *, of: int = 2) -> float:
            """Docs."""
            return number / of

    async def line() -> None:
        assert await Store().half(3, of=4) == 0.75
        with pytest.raises(ZeroDivisionError):
            await Store().half(1, of=0)
        assert Store.half.__doc__ == "Docs."

    asyncio.run(line())
