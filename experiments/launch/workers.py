"""Function calls in workers: OS processes of this machine. No call starts after a stop."""

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
    """Runs the calls (picklable, e.g. `functools.partial`), one at a time on each of `workers` workers.

    Yields `(index, result)` as calls end, and None every `poll` seconds in between, so that progress can be shown. An
    interrupt, an error or an early end of the loop stops all calls immediately.
    """
    others = set(multiprocessing.active_children())
    waiting = deque(enumerate(calls))
    running: dict[Future[Any], int] = {}
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < workers:  # the pool queues no call: a stopped worker starts no other
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
    """A queue that calls in all workers can put into."""
    with multiprocessing.get_context("spawn").Manager() as manager:
        yield manager.Queue()


@contextlib.contextmanager
def resume_hint(bar: tqdm[Any], hint: str) -> Iterator[None]:
    """Prints how to resume if the work inside is stopped; a killed worker raises a `FlagError` with the same hint."""
    try:
        yield
    except BrokenProcessPool as error:
        raise FlagError(f"a worker was killed (out of memory?); {hint}") from error
    except BaseException:
        bar.write(f"stopped; {hint}")
        raise
