"""Calls in workers: results, progress, errors and stops."""

from __future__ import annotations

import multiprocessing
import operator
import os
import time
from functools import partial
from pathlib import Path

import pytest
from tqdm import tqdm

from experiments.errors import FlagError
from experiments.launch import resume_hint, run_in_workers


def test_results_come_with_their_index() -> None:
    """Each call's result once, in any order; None while no call has ended."""
    calls = [partial(operator.add, i, 10) for i in range(5)]
    found = list(run_in_workers(calls, workers=2, poll=0.01))
    assert None in found  # a worker takes longer than that to start
    assert sorted(ended for ended in found if ended is not None) == [(i, i + 10) for i in range(5)]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stop_ends_running_calls_and_starts_none(stop: type[BaseException], tmp_path: Path) -> None:
    """Calls that would take ten minutes are ended; waiting calls never start."""
    calls = [partial(time.sleep, 600)] * 2 + [partial((tmp_path / "started").touch)] * 2
    results = run_in_workers(calls, workers=2, poll=0.1)
    assert next(results) is None
    with pytest.raises(stop):
        results.throw(stop())
    assert multiprocessing.active_children() == [] and not (tmp_path / "started").exists()


def test_an_error_stops_the_others() -> None:
    """The error of one call is raised to the caller, and the other calls are ended."""
    calls = [partial(time.sleep, 600), partial(operator.truediv, 1, 0)]
    with pytest.raises(ZeroDivisionError):
        list(run_in_workers(calls, workers=2, poll=0.1))
    assert multiprocessing.active_children() == []


def test_a_stop_prints_how_to_resume(capsys: pytest.CaptureFixture[str]) -> None:
    """After an interrupt; a killed worker is an error of one line with the same hint."""
    with pytest.raises(KeyboardInterrupt), tqdm(disable=True) as bar, resume_hint(bar, "use --resume"):
        raise KeyboardInterrupt
    assert "stopped; use --resume" in capsys.readouterr().out
    with (
        pytest.raises(FlagError, match=r"a worker was killed.*use --resume"),
        tqdm(disable=True) as bar,
        resume_hint(bar, "use --resume"),
    ):
        list(run_in_workers([partial(os._exit, 9)], workers=1, poll=0.1))
