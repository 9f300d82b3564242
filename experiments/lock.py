"""The lock of a run folder: one OS process at a time writes to it.

`lock.json` names the process that uses the folder: its host, its id, and its start time, because ids are used again.
It is created whole, and by one of several processes that try at once. A lock outlives a process that was killed. On
the same host this is noticed, and the lock is taken over; whether a process on another host still runs cannot be seen
from here, so that its lock is taken over with `--take-over` alone.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from agents import files
from experiments.errors import FlagError
from textenv.data import printable

LOCK = "lock.json"
GUARD = f".{LOCK}.guard"  # on Windows alone: folders cannot be locked there
SAME_START = 1.0  # seconds: start times are rounded, and computed from the clock, which may be set


class Owner(NamedTuple):
    """An OS process that has locked a folder."""

    host: str
    pid: int
    started: float  # seconds since 1970

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def runs(self) -> bool:
        """Whether the process, which must be on this host, has not ended."""
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:  # killed, and not yet noticed by its parent
                return False
            return bool(abs(process.create_time() - self.started) < SAME_START)
        except (psutil.NoSuchProcess, OverflowError):  # no process has such an id
            return False
        except psutil.AccessDenied:
            return True


@contextmanager
def locked(folder: Path, take_over: bool = False) -> Iterator[None]:
    """Holds the lock of a folder, and releases it at the end, after an error too.

    Args:
        folder: the folder; it must exist.
        take_over: take over the lock of a process on another host, and one that cannot be read.

    Raises:
        FlagError: another process uses the folder, or may use it. The system tells of one on this host; where it
            does not, the start time of the process does.
        StorageError: the folder cannot be written.
    """
    owner = Owner(socket.gethostname(), os.getpid(), psutil.Process().create_time())
    with _acquire(folder, owner, take_over):
        try:
            yield
        finally:
            _release(folder, owner)


def _acquire(folder: Path, owner: Owner, take_over: bool) -> ExitStack:
    """Writes the lock; returns what holds it for this process."""
    path = folder / LOCK
    with _one_at_a_time(folder):
        if files.create_json(path, owner._asdict(), owner.host):  # one at a time on each host; leftovers are replaced
            return _held(path)
        try:
            other = _read(path)
            who, reason = str(other), _why_free(folder, other, take_over)
        except files.DamagedFile as error:
            if _is_held(path):
                raise FlagError(
                    f"{error} The folder is in use by a process of this host: wait until it ends."
                ) from error
            if not take_over:
                raise FlagError(
                    f"{error} It is the lock of the folder: add --take-over if no process uses the folder."
                ) from error
            who, reason = "an unknown process", "the lock could not be read"
        print(printable(f"{folder}: taken over from {who}: {reason}."), file=sys.stderr)
        files.write_json(path, owner._asdict(), sync=True)
        return _held(path)


def _held(path: Path) -> ExitStack:
    """Locks the file of the lock in the system, where it can: this ends with the process, and no clock moves it.

    Raises:
        BlockingIOError: another process on this host has locked it.
    """
    with ExitStack() as stack:
        if sys.platform != "win32" and path.is_file():  # a pipe would be opened for ever
            import fcntl

            file = stack.enter_context(path.open("rb"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:  # a file system without flock
                pass
        return stack.pop_all()


def _is_held(path: Path) -> bool:
    try:
        _held(path).close()
    except BlockingIOError:
        return True
    return False


def _why_free(folder: Path, other: Owner, take_over: bool) -> str:
    """Why the lock of another process may be taken over; raises a FlagError if it may not."""
    if other.host != socket.gethostname():
        if take_over:
            return "--take-over was given"
        raise FlagError(
            f"{str(folder)!r} is in use by {other}. Whether that process still runs cannot be seen from "
            f"{socket.gethostname()}: if it does not, add --take-over."
        )
    if other.runs() or _is_held(folder / LOCK):  # the start times differ after a step of the clock
        raise FlagError(
            f"{str(folder)!r} is in use by {other}, which is running. Wait until it ends, stop it (kill {other.pid}), "
            "or choose another folder."
        )
    return "it has ended"


def _release(folder: Path, owner: Owner) -> None:
    path = folder / LOCK
    if not folder.is_dir():  # removed with its lock
        return
    # A lock that cannot be removed is that of a process that has ended: the next one takes it over.
    with suppress(files.StorageError, files.DamagedFile), _one_at_a_time(folder):
        if _read(path) == owner:  # not if another process took it over
            files.remove(path)


def _read(path: Path) -> Owner:
    content = files.read_json(path)
    files.check_types(path, content, {"host": str, "pid": int, "started": float})
    return Owner(content["host"], content["pid"], content["started"])


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Lets one process of this host at a time read and change the lock. The system ends this with the process."""
    if sys.platform == "win32":
        import msvcrt

        with (folder / GUARD).open("ab") as file:
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
            yield
    else:
        import fcntl

        with files.storage_errors("lock", folder):
            descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # on a file system without flock `create_json` alone decides
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
