"""Commands of `python -m experiments` in OS processes of their own, to which signals are sent while they run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.helpers.paths import ROOT


class Stopped(NamedTuple):
    """A command that a signal ended: its exit code, what it printed, and its processes that are left."""

    code: int
    output: str
    left: list[psutil.Process]


def interrupt(
    arguments: list[str], number: int, when: Callable[[], bool], output: Path, group: bool = False, limit: float = 240.0
) -> Stopped:
    """Starts a command, sends it a signal, and waits for its end and for that of its processes.

    Args:
        arguments: of `python -m experiments`.
        number: the signal.
        when: the signal is sent as soon as this is true.
        output: a file for what it prints.
        group: send the signal to all its processes, as a terminal does.
        limit: seconds.
    """
    with output.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
        )
    deadline = time.monotonic() + limit
    while not when():
        assert process.poll() is None, output.read_text(encoding="utf-8")
        assert time.monotonic() < deadline, output.read_text(encoding="utf-8")
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    if group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    code = process.wait(limit)
    _, left = psutil.wait_procs(children, timeout=30)
    for child in left:
        child.kill()
    return Stopped(code, output.read_text(encoding="utf-8"), left)


def lines(folder: Path, pattern: str) -> int:
    """The number of lines in all files of a folder that fit a pattern."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(pattern))
