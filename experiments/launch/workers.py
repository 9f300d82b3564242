"""Calls in processes, as many at once as there are workers; none begins after a stop."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from experiments.errors import FlagError


def run_in_workers(
    calls: Sequence[Callable[[], Any]], workers: int, poll: float
) -> Generator[tuple[int, Any] | None, None, None]:
    """Run the calls (picklable, e.g. `functools.partial`), as many at once as there are workers.

    Yields `(index, result)` as calls end, and None every `poll` seconds in between, so that progress can be shown. An
    interrupt, an error or an early end of the loop stops all of them at once.
    """
    others = set(multiprocessing.active_children())
    waiting = deque(enumerate(calls))
    running: dict[Future[Any], int] = {}
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < workers:  # nothing is queued: a worker that is stopped begins no other
                    index, call = waiting.popleft()
                    running[pool.submit(call)] = index
                done, _ = wait(running, timeout=poll, return_when=FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), future.result()
                if not done:
                    yield None
        except BaseException:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise


@contextlib.contextmanager
def worker_queue() -> Iterator[Any]:
    """A queue that all calls can put into."""
    with multiprocessing.get_context("spawn").Manager() as manager:
        yield manager.Queue()


@contextlib.contextmanager
def resume_hint(bar: tqdm[Any], again: str) -> Iterator[None]:
    """Where the work under the bar is stopped, say how to go on; a worker that was killed is an error of a line."""
    try:
        yield
    except BrokenProcessPool as error:
        raise FlagError(f"a worker was killed (out of memory?); {again}") from error
    except BaseException:
        bar.write(f"stopped; {again}")
        raise
