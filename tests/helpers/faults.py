"""Runs commands of `python -m experiments` with a fault at one of their file operations, in forked children.

A child has all imports of its parent, so that a start takes as long as the command alone. `final_state` is what must be
equal between an uninterrupted run and one that was interrupted and resumed.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import json
import os
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from tqdm import tqdm

from agents.files import atomic
from experiments.command_line import main

# error, half: the disk is full, at once or after half of the content; kill, kill_half: SIGKILL
FaultKind = Literal["error", "half", "kill", "kill_half"]
KINDS: tuple[FaultKind, ...] = ("error", "half", "kill", "kill_half")
LIMIT = 300.0  # seconds of a command
WRITES = ("write", "append to", "remove")  # operations that can be done by half
TIMES = ("seconds", "cpu_seconds", "tokens_per_second")  # what differs between two equal runs
# what nothing reads to resume
OUTPUTS = (
    "events.out.tfevents",
    "curves.png",
    "report.txt",
    "report.html",
    "lock.json",
    ".lock",
    "..lock",
    "accepted_changes.jsonl",
)


class Operation(NamedTuple):
    """A file operation of a command."""

    name: str
    path: str


class Fault(NamedTuple):
    """A fault at an operation, counted from 0."""

    at: int
    kind: FaultKind


class Ended(NamedTuple):
    """How a command has ended: its exit code (-9 after SIGKILL), what it printed, and its file operations."""

    code: int
    output: str
    operations: list[Operation]


def run(
    arguments: list[str], folder: Path, fault: Fault | None = None, before: Callable[[], Any] | None = None
) -> Ended:
    """Runs a command in a forked child, in a folder of its own.

    Args:
        arguments: of `python -m experiments`.
        folder: the working directory of the command.
        fault: happens at one of its operations.
        before: called in the child before the command, for example to replace a slow function.
    """
    folder.mkdir(parents=True, exist_ok=True)
    output, log = folder / "output.txt", folder / "operations.txt"
    output.unlink(missing_ok=True)
    with suppress(AttributeError, OSError):  # glibc's; a fork copies a table of all memory, that of earlier tests too
        ctypes.CDLL(None).malloc_trim(0)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:

        def prepare() -> None:
            inject(log, fault)
            if before is not None:
                before()

        become_command(arguments, folder, output, prepare)
    _, status = os.waitpid(child, 0)
    operations = [Operation(*line.split("\t")) for line in log.read_text().splitlines()]
    return Ended(os.waitstatus_to_exitcode(status), output.read_text(errors="replace"), operations)


def become_command(
    arguments: list[str], folder: Path, output: Path, before: Callable[[], Any] = lambda: None
) -> NoReturn:
    """Runs a command in this process, which is a forked child, and ends it.

    Args:
        arguments: of `python -m experiments`.
        folder: the working directory.
        output: the file to which output is appended.
        before: called before the command.
    """
    code = 1
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        os.chdir(folder)
        sys.argv = ["experiments", *arguments]
        faulthandler.dump_traceback_later(LIMIT, exit=True)  # a command that hangs fails, and its output tells where
        tqdm.set_lock(threading.RLock())  # tqdm's own is shared with other forks: one that is killed may hold it
        before()
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def inject(log: Path, fault: Fault | None) -> None:
    """Counts and logs the file operations of this process from now on, and lets one of them fail."""
    perform, count = atomic.perform, 0
    os.fsync = lambda descriptor: None  # it waits for the disk, and a process that is killed loses nothing
    file = log.open("w", encoding="utf-8", buffering=1)

    def counted(operation: str, path: Path, action: Callable[[], Any]) -> Any:
        nonlocal count
        file.write(f"{operation}\t{path}\n")
        hit, count = fault is not None and fault.at == count, count + 1
        return perform(operation, path, _faulty(fault.kind, operation, path, action) if hit and fault else action)

    atomic.perform = counted


def faults_of(operations: list[Operation]) -> Iterator[tuple[Operation, Fault]]:
    """Every fault of a run with these operations, but for kills at which the disk is as at the operation before."""
    for at, operation in enumerate(operations):
        for kind in KINDS:
            by_half = kind.endswith("half")
            same = kind == "kill" and at > 0 and operations[at - 1].name in ("sync", "read")
            if not same and (not by_half or operation.name in WRITES):
                yield operation, Fault(at, kind)


def one_at_each(operations: list[Operation]) -> Iterator[Fault]:
    """One fault at every operation: of its kinds the one tried least, there and in all."""
    tried: Counter[object] = Counter()
    for _, group in groupby(faults_of(operations), lambda each: each[1].at):
        operation, fault = min(group, key=lambda each: (tried[each[0], each[1].kind], tried[each[1].kind]))
        tried.update([(operation, fault.kind), fault.kind])
        yield fault


def _faulty(kind: FaultKind, operation: str, path: Path, action: Callable[[], Any]) -> Callable[[], Any]:
    def act() -> Any:
        if kind.endswith("half"):
            if operation == "remove":
                _remove_half(path)
            elif operation in WRITES:
                action()
                _halve(path if operation == "append to" else _newest(path))
        if kind.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return act


def _newest(path: Path) -> Path:
    """The file or folder that is being written for `path`."""
    candidates = (atomic.beside(path, "new"), path / ".new", path)
    return next(each for each in candidates if os.path.lexists(each))


def _remove_half(path: Path) -> None:
    """Removes every other file of a folder."""
    for file in sorted(each for each in path.rglob("*") if each.is_file())[::2]:
        file.unlink()


def _halve(path: Path) -> None:
    """Cuts a file, or the last file of a folder, in half. A hard link is there whole or not at all."""
    if path.is_dir():
        _remove_half(path)
        for file in sorted(each for each in path.rglob("*") if each.is_file())[-1:]:
            _halve(file)
    elif path.stat().st_nlink > 1:
        path.unlink()
    else:
        size = path.stat().st_size
        os.truncate(path, max(0, size - 5) if path.suffix == ".jsonl" else size // 2)


def final_state(folder: Path) -> dict[str, Any]:
    """The content of a run's files by relative path: bytes, or JSON without times and without what depends on them."""
    state: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or any(path.name.startswith(each) for each in OUTPUTS):
            continue
        state[name] = path.read_bytes()
        with suppress(ValueError):
            if path.suffix == ".jsonl":
                state[name] = [timeless(json.loads(line)) for line in state[name].splitlines()]
            elif path.suffix == ".json":
                state[name] = timeless(json.loads(state[name]))
    return state


def timeless(content: Any) -> Any:
    """JSON content without times, and without checksums of content that has times."""
    if isinstance(content, dict):
        dropped = {*TIMES, "checksum", "metrics", "config"}
        return {name: timeless(value) for name, value in content.items() if name not in dropped}
    return [timeless(each) for each in content] if isinstance(content, list) else content


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The names of files that differ between two states."""
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
