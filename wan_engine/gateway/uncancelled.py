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
    """The result of `work`. If the caller is cancelled meanwhile, `on_cancel` is called, and the
    caller is cancelled once `work` has ended.

    `asyncio.shield` alone would not wait: the remaining transaction would report from its thread to
    an event loop that may have ended.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        on_cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # retrieve the exception, or asyncio complains
        raise


def always_uncancelled(
    method: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """`uncancelled` for every call of a method."""

    @wraps(method)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return await uncancelled(method(*args, **kwargs))

    return run
