"""Function calls on a Ray cluster: what `experiments.launch.workers` does on one machine.

The cluster is the one of RAY_ADDRESS, or one that runs on this machine, or a new one on this machine's processors. Each
node has this package installed and can read and write the run's folder. A call whose worker was killed is run again; a
trial then resumes from its last checkpoint, if there is one. With `--device cuda` each trial has a GPU of its own, and
so must the process that starts them: it makes the initial policy and measures the baselines.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from experiments.errors import FlagError

RETRIES = 3  # how often a call is run again after its worker was killed


def run_on_ray(
    calls: Sequence[Callable[[], Any]], workers: int, poll: float, num_gpus: int = 0
) -> Generator[tuple[int, Any] | None, None, None]:
    """Runs the calls as `run_in_workers` does, each on one processor and `num_gpus` GPUs of its own.

    Yields `(index, result)` as calls end, and None every `poll` seconds in between. An interrupt, an error or an early
    end of the loop stops all calls immediately.
    """
    import ray

    remote = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=RETRIES)(_call)
    waiting = deque(enumerate(calls))
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                index, call = waiting.popleft()
                running[remote.remote(call)] = index
            done, _ = ray.wait(list(running), timeout=poll)
            for reference in done:
                yield running.pop(reference), ray.get(reference)
            if not done:
                yield None
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise BrokenProcessPool(f"a worker was killed {RETRIES + 1} times") from error
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _call(call: Callable[[], Any]) -> Any:
    return call()


@contextlib.contextmanager
def ray_queue() -> Iterator[Any]:
    """Connects to the cluster and yields a queue that all calls can put into.

    Raises:
        FlagError: the cluster cannot be reached.
    """
    import ray
    from ray.util.queue import Queue

    connected_here = not ray.is_initialized()
    if connected_here:
        try:
            ray.init(log_to_driver=False, logging_level="warning")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise FlagError(f"--launcher ray: {str(error).splitlines()[0]}") from error
    queue = Queue()
    try:
        yield queue
    finally:
        queue.shutdown()
        if connected_here:
            ray.shutdown()


def ray_workers() -> int:
    """Number of processors of the cluster."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))
