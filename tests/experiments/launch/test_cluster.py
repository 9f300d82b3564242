"""A comparison on Ray: the same numbers as in processes; a worker that is killed is no loss."""

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

from experiments import trial
from experiments.compare import CompareConfig, compare, run_with_progress
from experiments.config import TrialConfig
from experiments.launch import ray_queue, ray_workers, run_on_ray
from experiments.trial import INITIAL, prepare, run_trial

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


def numbers(folder: Path) -> dict[str, Any]:
    """What each trial of a comparison found, but for the time that it took."""
    found = {}
    for path in sorted(folder.glob("*/seed-*/summary.json")):
        summary = json.loads(path.read_text())
        found[str(path.relative_to(folder))] = {name: value for name, value in summary.items() if "second" not in name}
    return found


def test_ray_finds_what_processes_find(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two agents, two seeds, two workers: equal to the last bit, to one process after the other, and all in the bar."""
    flags: dict[str, Any] = TINY | {"agents": ["reinforce", "ppo"], "seeds": [0, 1]}
    compare(CompareConfig(**flags, num_workers=1, out=tmp_path / "local"))
    capsys.readouterr()
    compare(CompareConfig(**flags, num_workers=2, launcher="ray", out=tmp_path / "ray"))
    shown = capsys.readouterr()
    assert numbers(tmp_path / "ray") == numbers(tmp_path / "local")
    assert len(numbers(tmp_path / "ray")) == 4
    assert "1.60k/1.60k" in shown.err
    assert (tmp_path / "ray" / "curves.png").is_file()


class KilledOnce:
    """A queue that kills the process that puts more than 100 tokens into it, once."""

    def __init__(self, queue: Any, killed: Path) -> None:
        self.queue, self.killed = queue, killed

    def put(self, told: tuple[int, int]) -> None:
        """Pass it on."""
        self.queue.put(told)
        if told[1] > 100 and not self.killed.exists():
            self.killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def run_saving(often: bool, *arguments: Any) -> dict[str, Any]:
    """`run_with_progress`, with a checkpoint after each update, or none before the end."""
    with mock.patch.object(trial.TrialLog, "_is_due", lambda log: often):
        return run_with_progress(*arguments)


@pytest.mark.parametrize("often", [True, False])
def test_a_trial_whose_worker_is_killed_goes_on(often: bool, tmp_path: Path) -> None:
    """From its last checkpoint, or where there is none from its start; its summary is what it would have been."""
    config = TrialConfig(**TINY, agent="ppo", out=tmp_path / "serial")  # type: ignore[arg-type]
    _, serial, _ = prepare(config, "serial", [config])
    wanted = run_trial(config, serial, serial / INITIAL)
    with ray_queue() as written:
        own = tmp_path / "on-ray"
        killer = KilledOnce(written, tmp_path / "killed")
        call = partial(run_saving, often, 0, config, own, serial / INITIAL, killer)
        (found,) = [ended for ended in run_on_ray([call], workers=1, poll=0.1) if ended is not None]
        told = [written.get_nowait() for _ in range(written.qsize())]
    assert (tmp_path / "killed").exists()
    assert {k: v for k, v in found[1].items() if "second" not in k} == {
        k: v for k, v in wanted.items() if "second" not in k
    }
    counts = [tokens for _, tokens in told]
    (again,) = [i for i in range(1, len(counts)) if counts[i] < counts[i - 1]]  # where the second worker began
    assert counts[again] == (counts[again - 2] if often else 0)  # the count before that of the kill was saved
    assert counts[-1] == wanted["num_timesteps"]


def free_processors(wanted: float) -> float:
    """Those that no call has, once they are as many as wanted; or after a minute, if they never are."""
    for _ in range(600):
        if (free := ray.available_resources().get("CPU", 0.0)) == wanted:
            break
        time.sleep(0.1)
    return float(free)


def test_results_errors_and_stops() -> None:
    """Each result once with its index; an error reaches the caller as what it is; a stop ends what runs."""
    calls = [partial(operator.add, i, 10) for i in range(4)]
    found = list(run_on_ray(calls, workers=2, poll=0.01))
    assert sorted(ended for ended in found if ended is not None) == [(i, i + 10) for i in range(4)]
    with pytest.raises(ZeroDivisionError):
        list(run_on_ray([partial(time.sleep, 20), partial(operator.truediv, 1, 0)], workers=2, poll=0.1))
    assert free_processors(2) == 2  # at the latest when it has slept: a call that has not begun may be cancelled late
    ended_early = run_on_ray([partial(time.sleep, 600)] * 2, workers=2, poll=0.1)
    assert next(ended_early) is None and free_processors(0) == 0
    ended_early.close()
    assert free_processors(2) == 2
    with pytest.raises(BrokenProcessPool, match="killed 4 times"):
        list(run_on_ray([partial(os._exit, 9)], workers=1, poll=0.1))
    assert ray_workers() == 2
    assert [e for e in run_on_ray([partial(operator.add, 1, 1)], workers=1, poll=0.1) if e is not None] == [(0, 2)]
