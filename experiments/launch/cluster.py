"""Function calls on a Ray cluster: what `experiments.launch.workers` does on one machine.

The cluster is the one of RAY_ADDRESS, or one that runs on this machine, or a new one on this machine's processors. Each
node has this package installed and can read and write the run's folder. A call whose worker was killed is run again; a
trial then resumes from its last checkpoint, if there is one. With `--device cuda` each trial has a GPU of its own, and
so must the process that starts them: it makes the initial policy and measures the baselines.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from experiments.errors import FlagError
from experiments.launch.calls import Call, Ended, Event, Failure, Progress, run_call
from experiments.launch.workers import STOP_SECONDS

RETRIES = 3  # how often a call is run again after its worker was killed


def run_on_ray(
    calls: Sequence[Call],
    workers: int,
    poll: float,
    is_stopping: Callable[[], bool] = lambda: False,
    stop_seconds: float = STOP_SECONDS,
    num_gpus: int = 0,
) -> Generator[Event | None, None, None]:
    """Runs the calls as `run_in_workers` does, each on one processor and `num_gpus` GPUs of its own.

    Args:
        calls, poll, stop_seconds: see `run_in_workers`.
        workers: how many calls run at once; 0 is one per processor of the cluster.
        is_stopping: once it returns True no call is started, and those that run are interrupted.
        num_gpus: GPUs of each call.

    Raises:
        FlagError: the cluster cannot be reached.
    """
    with _connected():
        yield from _run(calls, workers or _processors(), poll, is_stopping, stop_seconds, num_gpus)


def _run(
    calls: Sequence[Call],
    workers: int,
    poll: float,
    is_stopping: Callable[[], bool],
    stop_seconds: float,
    num_gpus: int,
) -> Generator[Event | None, None, None]:
    import ray
    from ray.util.queue import Queue

    remote = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=RETRIES)(_call)
    waiting = deque(enumerate(calls))
    running: dict[Any, int] = {}
    deadline: float | None = None
    reported = Queue()
    try:
        while waiting or running:
            if deadline is None and is_stopping():
                deadline = time.monotonic() + stop_seconds
                waiting.clear()
                for reference in running:
                    ray.cancel(reference)  # a SIGINT, which `run_trial` handles
            if deadline is not None and time.monotonic() > deadline:
                for reference in running:
                    ray.cancel(reference, force=True)
            while waiting and len(running) < workers:
                index, call = waiting.popleft()
                running[remote.remote(index, call, reported)] = index
            done, _ = ray.wait(list(running), timeout=poll)
            events: list[Event] = list(_drain(reported))
            events += [_result(reference, running.pop(reference)) for reference in done]
            if not events:
                yield None
            yield from events
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        reported.shutdown()


def _call(index: int, call: Call, reported: Any) -> Ended:
    return run_call(index, call, lambda value: reported.put(Progress(index, value)))


def _result(reference: Any, index: int) -> Ended:
    import ray

    try:
        ended: Ended = ray.get(reference)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
        return Ended(index, failure=Failure(f"its worker was killed {RETRIES + 1} times (out of memory?)", ""))
    except (ray.exceptions.TaskCancelledError, ray.exceptions.RayTaskError) as error:
        return Ended(index, failure=Failure(str(error).splitlines()[0], str(error)))
    return ended


def _drain(reported: Any) -> Iterator[Progress]:
    while True:
        try:
            yield reported.get_nowait()
        except queue.Empty:
            return


@contextmanager
def _connected() -> Iterator[None]:
    import ray

    connected_here = not ray.is_initialized()
    if connected_here:
        try:
            ray.init(log_to_driver=False, logging_level="warning")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise FlagError(f"--launcher ray: {str(error).splitlines()[0]}") from error
    try:
        yield
    finally:
        if connected_here:
            ray.shutdown()


def _processors() -> int:
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))
