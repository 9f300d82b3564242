"""The lock of a run folder: one process holds it; only that of an ended process is taken over without being asked."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from agents import files
from experiments.errors import FlagError
from experiments.lock import LOCK, locked
from tests.helpers.children import fork, kill_self, wait


def write_owner(folder: Path, **changes: Any) -> None:
    """Writes a lock that this process holds, but for some changes."""
    folder.mkdir(exist_ok=True)
    own = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
    files.write_json(folder / LOCK, own | changes)


def left_by_a_killed_process(folder: Path) -> None:
    """Leaves the lock of a process that was killed while it held it."""

    def hold() -> None:
        with locked(folder):
            kill_self()

    assert wait(fork(hold)) == -signal.SIGKILL and (folder / LOCK).is_file()


def test_it_names_its_owner_and_is_released(tmp_path: Path) -> None:
    """Host, process id and start time; it is gone at the end, and after an error too."""
    with locked(tmp_path):
        found = files.read_json(tmp_path / LOCK)
        assert found == {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
        }
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_running_owner_is_refused(tmp_path: Path) -> None:
    """With its host, its id and what to do; --take-over does not help. Its lock is as it was."""
    with locked(tmp_path):
        before = (tmp_path / LOCK).read_bytes()
        for take_over in (False, True):
            message = rf"in use by process {os.getpid()} on .*, which is running.*kill {os.getpid()}"
            with pytest.raises(FlagError, match=message), locked(tmp_path, take_over):
                pass
        assert (tmp_path / LOCK).read_bytes() == before


def test_the_lock_of_an_ended_process_is_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one that was killed, that its parent has not noticed yet, or whose id another process has by now."""
    left_by_a_killed_process(tmp_path)
    with locked(tmp_path):
        assert "taken over" in capsys.readouterr().err

    zombie = fork(kill_self)
    while psutil.Process(zombie).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    write_owner(tmp_path, pid=zombie, started=psutil.Process(zombie).create_time())
    with locked(tmp_path):
        assert f"taken over from process {zombie}" in capsys.readouterr().err
    wait(zombie)

    write_owner(tmp_path, started=psutil.Process().create_time() - 100)
    with locked(tmp_path):
        assert "it has ended" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="start times are no sums of a clock there")
@pytest.mark.parametrize("damaged", [False, True])
def test_a_running_owner_is_known_after_a_step_of_the_clock(damaged: bool, tmp_path: Path) -> None:
    """Its start time seems to be another one, or the lock cannot be read: the system knows that it holds the file."""
    with locked(tmp_path):
        write_owner(other := tmp_path / "other", started=psutil.Process().create_time() - 3600)
        (tmp_path / LOCK).write_bytes(b"{" if damaged else (other / LOCK).read_bytes())
        for take_over in (False, True):
            with pytest.raises(FlagError, match="is in use by"), locked(tmp_path, take_over):
                pass
    (tmp_path / LOCK).write_bytes((other / LOCK).read_bytes())
    with locked(tmp_path):  # control: nobody holds it
        pass


def test_another_host_needs_to_be_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether its process runs cannot be seen: refused, and with --take-over taken."""
    write_owner(tmp_path, host="elsewhere")
    before = (tmp_path / LOCK).read_bytes()
    with pytest.raises(FlagError, match=r"process \d+ on elsewhere.*add --take-over"), locked(tmp_path):
        pass
    assert (tmp_path / LOCK).read_bytes() == before
    with locked(tmp_path, take_over=True):
        assert "taken over" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\x00", b"[]", b'{"host": "a"}', b'{"host": 1, "pid": "x", "started": null}']
)
def test_a_damaged_lock_needs_to_be_asked(content: bytes, tmp_path: Path) -> None:
    """Its owner is not known."""
    (tmp_path / LOCK).write_bytes(content)
    with pytest.raises(FlagError, match=r"lock\.json.*add --take-over"), locked(tmp_path):
        pass
    assert (tmp_path / LOCK).read_bytes() == content
    with locked(tmp_path, take_over=True):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pid", [-1, 0, 2**40, True, 1.5])
def test_ids_that_no_process_has(pid: Any, tmp_path: Path) -> None:
    """Damaged, or an owner that does not run; never an error of psutil."""
    write_owner(tmp_path, pid=pid)
    with locked(tmp_path, take_over=True):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [False, True], ids=["free", "left by a killed process"])
def test_one_of_several_at_once_wins(left: bool, tmp_path: Path) -> None:
    """Real processes that start together: one takes the lock, the others are refused with its id."""
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        if left:
            left_by_a_killed_process(folder)
        gate, go = os.pipe()
        done, finish = os.pipe()

        def take(folder: Path = folder, gate: int = gate, go: int = go, done: int = done, finish: int = finish) -> None:
            os.close(go)
            os.close(finish)
            os.read(gate, 1)  # until the parent closes its end
            with locked(folder):
                (folder / f"won-{os.getpid()}").touch()
                os.read(done, 1)

        children = [fork(take, folder / f"refused-{number}") for number in range(4)]
        os.close(go)
        while len(list(folder.glob("refused-*"))) < 3 and len(list(folder.glob("won-*"))) < 2:
            time.sleep(0.001)
        os.close(finish)
        codes = [wait(child) for child in children]
        os.close(gate)
        os.close(done)
        (winner,) = folder.glob("won-*")
        assert sorted(codes) == [0, 1, 1, 1]
        for path in folder.glob("refused-*"):
            assert f"in use by process {winner.name.removeprefix('won-')} on" in path.read_text()


def test_a_lock_that_was_taken_over_is_not_removed(tmp_path: Path) -> None:
    """By the process that held it before."""
    with locked(tmp_path):
        write_owner(tmp_path, host="elsewhere")
    assert files.read_json(tmp_path / LOCK)["host"] == "elsewhere"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """An error that names it. (Root may write everywhere: there the folder is missing.)"""
    with pytest.raises(files.StorageError, match="missing"), locked(tmp_path / "missing"):
        pass
