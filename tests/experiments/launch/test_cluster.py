"""A comparison on Ray: the same numbers as in local workers; a killed worker's call is run again."""

from __future__ import annotations

import json
import operator
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from experiments.compare import CompareConfig, compare, run_with_progress
from experiments.config import TrialConfig
from experiments.launch import ray_queue, ray_workers, run_on_ray
from experiments.trial import INITIAL, prepare, run_trial
from experiments.trial_log import TrialLog

ray = pytest.importorskip("ray")

TINY = {
    "env": "textenv/Toy-v0",
    "env_args": {"vocab_size": 3, "max_new_tokens": 2, "num_prompts": 1},
    "total_timesteps": 400,
    "n_episodes": 16,
    "num_evals": 3,
}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A local Ray with two workers."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def timeless_summaries(folder: Path) -> dict[str, Any]:
    """The summary of each trial of a comparison, without the entries that depend on time."""
    found = {}
    for path in sorted(folder.glob("*/seed-*/summary.json")):
        summary = json.loads(path.read_text())
        found[str(path.relative_to(folder))] = {name: value for name, value in summary.items() if "second" not in name}
    return found


def test_ray_and_local_workers_give_the_same_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two agents, two seeds, two Ray workers: bit-identical to one local worker, and the bar counts all tokens."""
    flags: dict[str, Any] = TINY | {"agents": ["reinforce", "ppo"], "seeds": [0, 1]}
    compare(CompareConfig(**flags, num_workers=1, out=tmp_path / "local"))
    capsys.readouterr()
    compare(CompareConfig(**flags, num_workers=2, launcher="ray", out=tmp_path / "ray"))
    printed = capsys.readouterr()
    assert timeless_summaries(tmp_path / "ray") == timeless_summaries(tmp_path / "local")
    assert len(timeless_summaries(tmp_path / "ray")) == 4
    assert "1.60k/1.60k" in printed.err
    assert (tmp_path / "ray" / "curves.png").is_file()


class KilledOnce:
    """A queue that kills the worker that reports more than 100 tokens, once."""

    def __init__(self, queue: Any, killed: Path) -> None:
        self.queue, self.killed = queue, killed

    def put(self, progress: tuple[int, int]) -> None:
        """Forwards to the queue."""
        self.queue.put(progress)
        if progress[1] > 100 and not self.killed.exists():
            self.killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def run_saving(often: bool, *arguments: Any) -> dict[str, Any]:
    """`run_with_progress`, with a checkpoint after each update (`often`) or only at the end."""
    with mock.patch.object(TrialLog, "_is_due", lambda log: often):
        return run_with_progress(*arguments)


@pytest.mark.parametrize("often", [True, False])
def test_a_trial_whose_worker_is_killed_resumes(often: bool, tmp_path: Path) -> None:
    """From its last checkpoint, or from its start where there is none; its summary is that of an undisturbed run."""
    config = TrialConfig(**TINY, agent="ppo", out=tmp_path / "serial")  # type: ignore[arg-type]
    _, serial, _ = prepare(config, "serial", [config])
    expected = run_trial(config, serial, serial / INITIAL)
    with ray_queue() as queue:
        own = tmp_path / "on-ray"
        killer = KilledOnce(queue, tmp_path / "killed")
        call = partial(run_saving, often, 0, config, own, serial / INITIAL, killer)
        (found,) = [ended for ended in run_on_ray([call], workers=1, poll=0.1) if ended is not None]
        reports = [queue.get_nowait() for _ in range(queue.qsize())]
    assert (tmp_path / "killed").exists()
    assert {k: v for k, v in found[1].items() if "second" not in k} == {
        k: v for k, v in expected.items() if "second" not in k
    }
    counts = [tokens for _, tokens in reports]
    (restart,) = [i for i in range(1, len(counts)) if counts[i] < counts[i - 1]]  # where the second worker started
    assert counts[restart] == (counts[restart - 2] if often else 0)  # the checkpoint is from the update before the kill
    assert counts[-1] == expected["num_timesteps"]


def free_processors(expected: float) -> float:
    """Waits up to a minute until the number of free processors is `expected`, and returns it."""
    for _ in range(600):
        if (free := ray.available_resources().get("CPU", 0.0)) == expected:
            break
        time.sleep(0.1)
    return float(free)


def test_results_errors_and_stops() -> None:
    """Each result once with its index; an error reaches the caller with its type; a stop ends running calls."""
    calls = [partial(operator.add, i, 10) for i in range(4)]
    found = list(run_on_ray(calls, workers=2, poll=0.01))
    assert sorted(ended for ended in found if ended is not None) == [(i, i + 10) for i in range(4)]
    with pytest.raises(ZeroDivisionError):
        list(run_on_ray([partial(time.sleep, 20), partial(operator.truediv, 1, 0)], workers=2, poll=0.1))
    assert free_processors(2) == 2  # at the latest after its sleep: a call that has not started may be cancelled late
    ended_early = run_on_ray([partial(time.sleep, 600)] * 2, workers=2, poll=0.1)
    assert next(ended_early) is None and free_processors(0) == 0
    ended_early.close()
    assert free_processors(2) == 2
    with pytest.raises(BrokenProcessPool, match="killed 4 times"):
        list(run_on_ray([partial(os._exit, 9)], workers=1, poll=0.1))
    assert ray_workers() == 2
    assert [e for e in run_on_ray([partial(operator.add, 1, 1)], workers=1, poll=0.1) if e is not None] == [(0, 2)]
