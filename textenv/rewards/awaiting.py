"""Awaits what async reward functions return, all together, on an event loop in a thread of its own.

The loop is kept, so that what a function keeps between its calls, such as an HTTP session, stays usable. The thread is
needed where the caller's own thread runs a loop already, as in a notebook.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Sequence
from typing import NamedTuple

_loops: dict[int, asyncio.AbstractEventLoop] = {}  # by process id: a forked process does not have its parent's threads
_lock = threading.Lock()


class Outcome(NamedTuple):
    """What an awaitable came to: a value, or the error that it raised."""

    value: object
    error: BaseException | None


def await_all(awaitables: Sequence[Awaitable[object]]) -> list[Outcome]:
    """Awaits all of them at the same time, and returns their outcomes in order.

    Raises:
        RuntimeError: it is called from an async reward function, which would wait for itself.
    """
    loop = _event_loop()
    if asyncio._get_running_loop() is loop:
        discard(awaitables)
        raise RuntimeError("an async reward function must not score completions by another async reward function")
    future = asyncio.run_coroutine_threadsafe(_gather(awaitables), loop)
    try:
        return future.result()
    except BaseException:  # Ctrl-C while waiting
        future.cancel()
        raise


def discard(awaitables: Sequence[Awaitable[object]]) -> None:
    """Closes coroutines that will not be awaited: Python would warn of each."""
    for awaitable in awaitables:
        if asyncio.iscoroutine(awaitable):
            awaitable.close()


async def _gather(awaitables: Sequence[Awaitable[object]]) -> list[Outcome]:
    return list(await asyncio.gather(*map(_outcome, awaitables)))


async def _outcome(awaitable: Awaitable[object]) -> Outcome:
    try:
        return Outcome(await awaitable, None)
    except BaseException as error:  # also sys.exit, which would end the loop
        return Outcome(None, error)


def _event_loop() -> asyncio.AbstractEventLoop:
    with _lock:
        if (loop := _loops.get(os.getpid())) is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="async rewards", daemon=True).start()
        return loop
