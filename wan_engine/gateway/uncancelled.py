"""Runs work to its end, even if the task that waits for it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def uncancelled(
    work: Coroutine[Any, Any, T], on_cancel: Callable[[], object] = lambda: None
) -> T:
    """The result of `work`. A caller that is cancelled meanwhile waits for its end, after a call of
    `on_cancel`, and is cancelled then.

    `asyncio.shield` alone would not wait: a transaction left behind answers through a thread to an
    event loop that may have ended by then.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        on_cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # looked at, or asyncio complains that nobody did
        raise


def always_uncancelled(
    method: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """`uncancelled` for every call of a method."""

    @wraps(method)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return await uncancelled(method(*args, **kwargs))

    return run
