"""A comparison on Ray: the same numbers as in local workers; a killed worker's call is run again."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from experiments.compare import CompareConfig, compare
from experiments.config import TrialConfig
from experiments.launch import Ended, Progress, run_on_ray
from experiments.trial import INITIAL, run_trial
from experiments.trial_log import TrialLog
from experiments.trials import run_with_progress
from tests.helpers.commands import prepared, until_stopped
from tests.helpers.faults import timeless

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
        found[str(path.relative_to(folder))] = timeless(json.loads(path.read_text()))
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


def run_killed_once(often: bool, killed: Path, *arguments: Any) -> dict[str, Any]:
    """`run_with_progress` in a worker that is killed when it has reported more than 100 tokens, once.

    It writes a checkpoint after each update (`often`) or only at the end.
    """
    *settings, report = arguments

    def report_and_die(tokens: int) -> None:
        report(tokens)
        if tokens > 100 and not killed.exists():
            time.sleep(0.5)  # the report reaches the queue
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    with mock.patch.object(TrialLog, "_is_due", lambda log: often):
        return run_with_progress(*settings, report_and_die)


@pytest.mark.parametrize("often", [True, False])
def test_a_trial_whose_worker_is_killed_resumes(often: bool, tmp_path: Path) -> None:
    """From its last checkpoint, or from its start where there is none; its summary is that of an undisturbed run."""
    config = TrialConfig(**TINY, agent="ppo", out=tmp_path / "serial")  # type: ignore[arg-type]
    _, serial, _ = prepared(config, [config])
    expected = run_trial(config, serial, serial / INITIAL)
    own = tmp_path / "on-ray"
    call = partial(run_killed_once, often, tmp_path / "killed", config, own, serial / INITIAL, True)
    events = list(run_on_ray([call], workers=1, poll=0.1))
    (found,) = [event for event in events if isinstance(event, Ended)]
    assert found.failure is None and (tmp_path / "killed").exists()
    assert timeless(found.result) == timeless(expected)
    counts = [event.value for event in events if isinstance(event, Progress)]
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


def add(number: int, report: Any) -> int:
    """Reports a number, and returns it plus 10."""
    report(number)
    return number + 10


def fail(report: Any) -> None:
    """Fails."""
    raise ZeroDivisionError("by zero")


def sleep(seconds: float, report: Any) -> None:
    """Does nothing for a while."""
    time.sleep(seconds)


def end(report: Any) -> None:
    """Ends the worker."""
    os._exit(9)


def test_results_failures_and_stops(tmp_path: Path) -> None:
    """Each result once with its index; a failure does not stop the others; a stop waits for the checkpoints."""
    events = list(run_on_ray([partial(add, i) for i in range(4)], workers=2, poll=0.01))
    ended = {event.call: event for event in events if isinstance(event, Ended)}
    assert {index: event.result for index, event in ended.items()} == {i: i + 10 for i in range(4)}
    assert sorted(event for event in events if isinstance(event, Progress)) == [Progress(i, i) for i in range(4)]

    events = list(run_on_ray([fail, end, partial(add, 1)], workers=0, poll=0.1))
    ended = {event.call: event for event in events if isinstance(event, Ended)}
    assert ended[0].failure is not None and ended[0].failure.text == "ZeroDivisionError: by zero"
    assert ended[1].failure is not None and "killed 4 times" in ended[1].failure.text
    assert ended[2].result == 11

    path = tmp_path / "call"
    events = list(run_on_ray([partial(until_stopped, path)] * 2, workers=1, poll=0.1, is_stopping=path.exists))
    (stopped,) = [event for event in events if isinstance(event, Ended)]
    assert stopped.failure is not None and path.with_suffix(".checkpoint").exists()

    ended_early = run_on_ray([partial(sleep, 600)] * 2, workers=2, poll=0.1)
    assert next(ended_early) is None and free_processors(0) == 0
    ended_early.close()
    assert free_processors(2) == 2
