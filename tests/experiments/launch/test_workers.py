"""Calls in workers: results, progress, failures, stops, and the end of their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from functools import partial
from multiprocessing import process, util
from pathlib import Path
from typing import Any

import psutil
import pytest

from experiments.errors import Stopped
from experiments.launch import Ended, Progress, Report, run_in_workers
from experiments.launch.workers import _Worker
from experiments.stopping import stops_at_once
from tests.helpers.children import fork, wait
from tests.helpers.commands import until_stopped

# -- calls -------------------------------------------------------------------------------------------------------------


def add(number: int, report: Report) -> int:
    """Reports a number, and returns it plus 10."""
    report(number)
    return number + 10


def fail(what: str, report: Report) -> None:
    """Fails in one of several ways."""
    if what == "error":
        raise ZeroDivisionError("by zero")
    if what == "exit":
        sys.exit(0)
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "ended":
        os._exit(0)


def touch_and_sleep(path: Path, report: Report) -> None:
    """Creates a file with the process's id, and sleeps for ten minutes."""
    path.write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(600)


def ignore(path: Path, report: Report) -> None:
    """Creates a file, and ignores SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    path.touch()
    time.sleep(600)


def chatter(report: Report) -> None:
    """Reports without a pause, for ten minutes."""
    while True:
        report(0)
        time.sleep(1e-4)


def load_slowly(path: Path) -> Any:
    """Creates a file, and takes ten minutes, as a worker does that imports a call's modules."""
    path.touch()
    time.sleep(600)


class SlowToLoad:
    """A call that takes ten minutes to unpickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return load_slowly, (self.path,)

    def __call__(self, report: Report) -> None:
        """Never reached."""


def ended(events: list[Any]) -> dict[int, Ended]:
    """The last event of each call."""
    return {event.call: event for event in events if isinstance(event, Ended)}


# -- tests -------------------------------------------------------------------------------------------------------------


def test_results_and_progress_come_with_their_index() -> None:
    """Each call's progress and result once, in any order; None while nothing happens."""
    events = list(run_in_workers([partial(add, i) for i in range(5)], workers=2, poll=0.01))
    assert None in events  # a worker takes longer than that to start
    assert {index: event.result for index, event in ended(events).items()} == {i: i + 10 for i in range(5)}
    assert sorted(event for event in events if isinstance(event, Progress)) == [Progress(i, i) for i in range(5)]
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_failure_does_not_stop_the_others() -> None:
    """An error, sys.exit, a killed worker and one that ended: each call has its failure, and the rest its result."""
    kinds = ["error", "exit", "killed", "ended"]
    calls = [partial(fail, what) for what in kinds] + [partial(add, i) for i in range(2)]
    found = ended(list(run_in_workers(calls, workers=2, poll=0.1)))
    texts = [found[i].failure.text for i in range(4)]  # type: ignore[union-attr]
    assert texts[0] == "ZeroDivisionError: by zero" and texts[1] == "SystemExit: 0"
    assert texts[2] == "its worker was killed by SIGKILL (out of memory?)"
    assert texts[3] == "its worker ended with exit code 0"
    assert 'raise ZeroDivisionError("by zero")' in found[0].failure.traceback  # type: ignore[union-attr]
    assert [found[i].result for i in (4, 5)] == [10, 11]


def test_an_error_of_the_loop_ends_running_calls(tmp_path: Path) -> None:
    """Calls that would take ten minutes are ended; waiting calls never start."""
    calls = [partial(touch_and_sleep, tmp_path / str(i)) for i in range(4)]
    events = run_in_workers(calls, workers=2, poll=0.1)
    while len(list(tmp_path.iterdir())) < 2:
        assert next(events) is None
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt())
    assert multiprocessing.active_children() == [] and len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
def test_a_stop_waits_for_the_checkpoints(tmp_path: Path) -> None:
    """Running calls get a signal and end by themselves; waiting calls never start; one that ignores it is killed."""
    paths = [tmp_path / name for name in ("first", "second", "third")]
    calls = [partial(until_stopped, paths[0]), partial(ignore, paths[1]), partial(until_stopped, paths[2])]

    def is_stopping() -> bool:
        return paths[0].exists() and paths[1].exists()

    found = ended(list(run_in_workers(calls, 2, poll=0.05, is_stopping=is_stopping, stop_seconds=1.0)))
    assert sorted(found) == [0, 1] and not paths[2].exists()
    assert found[0].failure is not None and found[0].failure.text == "stopped by SIGTERM."
    assert (tmp_path / "first.checkpoint").exists()
    assert found[1].failure is not None and "SIGKILL" in found[1].failure.text


@pytest.mark.slow
def test_workers_do_not_get_ctrl_c(tmp_path: Path) -> None:
    """SIGINT, which reaches all processes of a terminal, ends none of them: their parent stops them."""
    events = run_in_workers([partial(until_stopped, tmp_path / "call")], workers=1, poll=0.05, is_stopping=lambda: sent)
    sent = False
    assert next(events) is None  # the worker has started, and imports
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGINT)
    while not (tmp_path / "call").exists():
        assert next(events) is None
    os.kill(worker.pid, signal.SIGINT)
    time.sleep(0.2)
    assert next(events) is None and worker.is_alive()
    sent = True
    assert [event.failure.text for event in events if isinstance(event, Ended) and event.failure] == [
        "stopped by SIGTERM."
    ]


# -- what a stop prints ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stop_reaches_a_worker_without_a_call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One call has ended, another runs: the worker that is idle ends too, and nothing is printed."""
    calls, results = [partial(add, 1), partial(until_stopped, tmp_path / "call")], list[Ended]()

    def is_stopping() -> bool:
        return bool(results) and (tmp_path / "call").exists()

    for event in run_in_workers(calls, 2, poll=0.05, is_stopping=is_stopping):
        results += [event] if isinstance(event, Ended) else []
    assert [event.result for event in results] == [11, None]
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_stop_reaches_a_worker_that_imports(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It ends at once, without a word."""
    path = tmp_path / "imports"
    (event,) = [e for e in run_in_workers([SlowToLoad(path)], 1, poll=0.05, is_stopping=path.exists) if e is not None]
    assert isinstance(event, Ended) and event.failure is not None
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_workers_that_report_are_killed_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """None of them tells that nobody receives its reports any more, however long the signal takes to reach it."""
    kill = process.BaseProcess.kill

    def late(self: process.BaseProcess) -> None:
        time.sleep(0.5)
        kill(self)

    monkeypatch.setattr(process.BaseProcess, "kill", late)
    events = run_in_workers([chatter] * 4, workers=4, poll=0.05)
    seen = set[int]()
    while len(seen) < 4:
        event = next(events)
        seen |= {event.call} if isinstance(event, Progress) else set()
    events.close()
    assert multiprocessing.active_children() == [] and capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_stop_while_a_worker_starts_comes_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A signal between the start of the OS process and what it is sent: it does not wait for that in vain."""
    start, workers = util.spawnv_passfds, list[psutil.Process]()

    def interrupted(*arguments: Any) -> int:
        child = start(*arguments)
        if b"spawn_main" in b" ".join(os.fsencode(each) for each in arguments[1]):  # not the tracker of resources
            workers.append(psutil.Process(child))
            signal.raise_signal(signal.SIGTERM)
        return child

    monkeypatch.setattr(util, "spawnv_passfds", interrupted)
    with stops_at_once(), pytest.raises(Stopped):
        list(run_in_workers([partial(touch_and_sleep, tmp_path / "call")], workers=1, poll=0.05))
    assert len(workers) == 1 and psutil.wait_procs(workers, timeout=60)[1] == []
    assert multiprocessing.active_children() == [] and capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """A parent that is killed: no process of it is left after a moment."""

    def parent() -> None:
        list(run_in_workers([partial(touch_and_sleep, tmp_path / str(i)) for i in range(2)], workers=2, poll=0.1))

    child = fork(parent)
    while len([path for path in tmp_path.iterdir() if path.read_text()]) < 2:
        time.sleep(0.05)
    workers = psutil.Process(child).children(recursive=True)
    assert {int(path.read_text()) for path in tmp_path.iterdir()} <= {process.pid for process in workers}
    os.kill(child, signal.SIGKILL)
    wait(child)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []


def test_a_worker_that_cannot_start_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that cannot be imported there: the worker's end is the call's failure, not a hang."""
    start = _Worker.start

    def end_first(self: _Worker, index: int, call: Any) -> None:
        self.process.kill()
        self.process.join()
        start(self, index, call)

    monkeypatch.setattr(_Worker, "start", end_first)
    found = ended(list(run_in_workers([partial(add, 1)], workers=1, poll=0.05)))
    assert found[0].failure is not None and "killed by SIGKILL" in found[0].failure.text
