"""Stops by signals: SIGINT (Ctrl-C) and SIGTERM (a scheduler, `kill`).

Outside training a signal ends the command at once. While an agent trains, the first one is remembered: the update that
is running ends, a checkpoint is written, and the command ends. A second one ends it at once. The exit code is 128 plus
the number of the signal. On Windows only Ctrl-C reaches a process; there is nothing like SIGTERM.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from agents.training import gather_objects, world_size
from experiments.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a signal asked this process to stop.

    Attributes:
        number: that of the signal; None as long as there was none.
    """

    number: int | None = None

    def stop_if_requested(self) -> None:
        """Raises Stopped if a signal reached any rank; all ranks call it."""
        if numbers := [number for number in gather_objects(self.number) if number is not None]:
            raise Stopped(max(numbers))


@contextmanager
def stops_at_once() -> Iterator[None]:
    """Signals raise Stopped."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with _handled(handle):
        yield


@contextmanager
def stops_later(what_first: str) -> Iterator[StopRequest]:
    """The first signal is remembered in the object that is yielded, and a second one raises Stopped.

    In a worker, and in one of several ranks, a second one is ignored. Both their parent and the system pass signals on
    to them, and their parent ends them if that is wanted.

    Args:
        what_first: what is done before the stop, for the message.
    """
    request = StopRequest()
    follower = world_size() > 1 or multiprocessing.parent_process() is not None

    def handle(number: int, frame: FrameType | None) -> None:
        if request.number is None:
            request.number = number
            if not follower:
                again = f"\n{signal.Signals(number).name}: stopping after {what_first}; a second one stops at once.\n"
                os.write(2, again.encode())  # `print` may be what the signal interrupted
        elif not follower:
            raise Stopped(number)

    with _handled(handle):
        yield request


@contextmanager
def stops_deferred() -> Iterator[None]:
    """Signals that come inside take effect at the end: for what must not be left half done."""
    numbers = list[int]()
    try:
        with _handled(lambda number, frame: numbers.append(number)):
            yield
    finally:
        for number in numbers:
            signal.raise_signal(number)


@contextmanager
def _handled(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handles signals by `handle`, except those that this process ignores. Only the main thread can do that."""
    main = threading.current_thread() is threading.main_thread()
    numbers = [number for number in SIGNALS if main and signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
