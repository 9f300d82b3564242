"""Faults at the file operations of this process."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agents import files
from agents.files import atomic


class Killed(BaseException):
    """Stands for SIGKILL: nothing that runs afterwards may change the disk."""


@contextmanager
def operations_fail(at: int | None = None, kill: bool = False) -> Iterator[list[str]]:
    """Logs the file operations in the block; the operation number `at`, counted from 0, does not happen.

    Args:
        at: None: none fails.
        kill: from then on no operation happens, and `Killed` is raised; else the disk is full, once.
    """
    perform = atomic.perform
    log: list[str] = []

    def faulty(operation: str, path: Path, action: Callable[[], Any]) -> Any:
        log.append(f"{operation} {path.name}")
        count = len(log) - 1
        if kill and at is not None and count >= at:
            raise Killed
        return perform(operation, path, full if count == at else action)

    def full() -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "perform", faulty)
        if kill:  # what tidies up after an error does not run in a process that was killed
            patch.setattr("agents.files.folders.shutil.rmtree", lambda *args, **kwargs: None)
            patch.setattr(Path, "rmdir", lambda path: None)
            patch.setattr("agents.files.rows.os.ftruncate", lambda *args: None)
        yield log


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder by relative path, with those of hidden folders."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rewrite(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a saved JSON file by hand, with the right checksums in the file and in the manifest."""
    saved = files.read_json(folder / name)
    change(saved)
    files.write_json(folder / name, saved)
    seal(folder)


def seal(folder: Path) -> None:
    """Makes the manifest of a folder that of the files that are there now."""
    manifest = files.read_json(folder / files.MANIFEST)
    names = [n for n in content(folder) if n != files.MANIFEST]
    files.write_json(folder / files.MANIFEST, manifest | {"files": {n: files.describe(folder / n) for n in names}})


def flip_a_bit(path: Path) -> None:
    """Changes one bit in the middle of a file."""
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)


def replace_by_a_folder(path: Path) -> None:
    """Puts an empty folder in the place of a file."""
    path.unlink()
    path.mkdir()


def replace_by_a_pipe(path: Path) -> None:
    """Puts a pipe, whose reading never ends, in the place of a file; a folder where there are no pipes."""
    path.unlink()
    os.mkfifo(path) if hasattr(os, "mkfifo") else path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "flipped": flip_a_bit,
    "removed": Path.unlink,
    "a folder": replace_by_a_folder,
    "a pipe": replace_by_a_pipe,
}
