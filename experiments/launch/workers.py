"""Function calls in workers: OS processes of this machine.

A call that fails, or whose worker is killed, does not stop the others. Workers end with their parent, however it ends:
each has a thread that waits for that.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from tqdm import tqdm

from experiments.errors import Stopped
from experiments.launch.calls import Call, Ended, Event, Failure, Progress, run_call
from experiments.stopping import stops_at_once, stops_deferred

STOP_SECONDS = 300.0  # after a stop: how long workers may take for the update that is running and their checkpoint

END_SECONDS = 10.0  # how long an idle worker may take to end


def run_in_workers(
    calls: Sequence[Call],
    workers: int,
    poll: float,
    is_stopping: Callable[[], bool] = lambda: False,
    stop_seconds: float = STOP_SECONDS,
) -> Generator[Event | None, None, None]:
    """Runs the calls, one at a time on each of `workers` workers.

    Args:
        calls: the calls.
        workers: how many of them run at once.
        poll: seconds.
        is_stopping: once it returns True no call is started, and those that run get SIGTERM (on Windows they end).
        stop_seconds: the workers that have not ended then are killed.

    Yields:
        `Progress` and `Ended` of the calls, and None where there is none for `poll` seconds. An error and an early end
        of the loop kill all workers.
    """
    waiting = deque(enumerate(calls))
    pool: list[_Worker] = []
    deadline: float | None = None
    try:
        while waiting or any(worker.is_busy for worker in pool):
            if deadline is None and is_stopping():
                deadline = time.monotonic() + stop_seconds
                waiting.clear()
                for worker in pool:
                    worker.process.terminate()
            if deadline is not None and time.monotonic() > deadline:
                for worker in pool:
                    worker.process.kill()
            with stops_deferred():  # half a start: the worker would print that its parent is gone
                while waiting and len(pool) < workers:
                    pool.append(_Worker())
            for worker in pool:
                if waiting and not worker.is_busy:
                    worker.start(*waiting.popleft())
            events = [event for worker in _ready(pool, poll) for event in worker.receive()]
            pool = [worker for worker in pool if worker.is_alive]
            if not events:
                yield None
            yield from events
    finally:
        with stops_deferred():
            for worker in pool:
                worker.dismiss()
            for worker in pool:
                worker.join()


class _Worker:
    """A worker, seen from its parent."""

    def __init__(self) -> None:
        self.index: int | None = None  # of the call that it runs
        self.is_alive = True
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,))
        with _sigint_blocked():
            self.process.start()
        theirs.close()

    @property
    def is_busy(self) -> bool:
        return self.index is not None

    def start(self, index: int, call: Call) -> None:
        self.index = index
        with suppress(BrokenPipeError, ConnectionResetError):  # if it has ended, `receive` will notice
            self.connection.send((index, call))

    def receive(self) -> Iterator[Event]:
        """What it has sent; and if it has ended, the failure of the call that it ran."""
        try:
            while self.connection.poll():
                event = self.connection.recv()
                if isinstance(event, Ended):
                    self.index = None
                yield event
        except (EOFError, OSError):
            self.is_alive = False
        if not self.is_alive or not self.process.is_alive():
            self.is_alive = False
            self.process.join()
            if self.index is not None:
                yield Ended(self.index, failure=Failure(_why_ended(self.process.exitcode), ""))
                self.index = None

    def dismiss(self) -> None:
        """Ends the process: an idle one ends by itself, a busy one is killed."""
        if self.is_busy:
            self.process.kill()  # before it notices that nobody receives any more
        self.connection.close()

    def join(self) -> None:
        """Waits for the end of the process."""
        self.process.join(END_SECONDS)
        self.process.kill()
        self.process.join()


def _ready(pool: list[_Worker], poll: float) -> list[_Worker]:
    """The workers that have sent something or ended; waits up to `poll` seconds for one."""
    found = set(wait([*(w.connection for w in pool), *(w.process.sentinel for w in pool)], timeout=poll))
    return [w for w in pool if w.connection in found or w.process.sentinel in found]


def _why_ended(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"its worker ended with exit code {exit_code}"
    name = {each.value: each.name for each in signal.Signals}.get(-exit_code, f"signal {-exit_code}")
    return f"its worker was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Processes that are started inside do not get SIGINT: Ctrl-C reaches all processes of a terminal's job."""
    if sys.platform == "win32":  # there is no such mask; `_work` ignores the signal a little later
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection[Any, Any]) -> None:
    """Runs calls until the parent has no more. Calls and results can be pickled.

    A stop between calls, or while one is unpickled (which imports its modules), and a parent that has gone end it
    without a word: what is to be said of a stop is the parent's to say.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # by default a semaphore of the system, which is left over where this is killed
    with suppress(Stopped, EOFError, BrokenPipeError, ConnectionResetError), stops_at_once():
        while True:
            index, call = connection.recv()

            def report(value: object, index: int = index) -> None:
                connection.send(Progress(index, value))

            connection.send(run_call(index, call, report))


def _end_with_parent() -> None:
    """Ends this process as soon as its parent has ended, however that happened."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
