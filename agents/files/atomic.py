"""Files that are there whole or not at all: written to the side, flushed, renamed.

A link in the place of what is written is replaced, never written through; `Agent.save` and `save_pretrained` follow
links to their folder. What writes, renames, syncs or removes a file goes through `perform`, and tests let each such
operation fail. Three things do not: what tidies up after an error or removes an empty folder, and the locks of the
system.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

T = TypeVar("T")


class StorageError(OSError):
    """A file could not be written. The message names it; the files that were written before are whole."""


def perform(operation: str, path: Path, action: Callable[[], T]) -> T:
    """Runs one operation on a file or folder.

    Raises:
        StorageError: the operation failed.
    """
    with storage_errors(operation, path):
        return action()


@contextmanager
def storage_errors(operation: str, path: Path) -> Iterator[None]:
    """Turns the errors of an operation on a file or folder into a StorageError that names it."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        if not isinstance(error, OSError | SafetensorError) and "(os error " not in str(error):  # that of tokenizers
            raise
        reason = getattr(error, "strerror", None) or error
        raise StorageError(
            f"Could not {operation} {str(path)!r}: {reason}. What was written before is whole."
        ) from error


def resolved(folder: str | os.PathLike[str]) -> Path:
    """The folder that a user names, with its links followed.

    Raises:
        StorageError: no folder can have this name.
    """
    with storage_errors("write", Path(folder)):
        try:
            path = Path(folder).resolve()
            path.exists()  # which fails for a name that is too long
        except ValueError as error:  # a NUL
            raise OSError(errno.EINVAL, str(error)) from error
    return path


def beside(path: Path, ending: str) -> Path:
    """A hidden name beside a file or folder, `.NAME.ENDING`, so that it is not that of a file of somebody else."""
    return path.with_name(f".{path.name}.{ending}")


def write_file(path: Path, write: Callable[[Path], object], sync: bool = False) -> None:
    """Writes a file by `write(temporary)`, and renames it to `path`.

    Args:
        path: the file; one of this name, or a link, is replaced.
        write: writes the file at the path that it is given. The file exists, and is empty.
        sync: wait until the content is on the disk.

    Raises:
        StorageError: the disk is full or cannot be written; `path` is as it was.
    """
    new = beside(path, "new")
    try:
        remove(new)

        def create() -> None:
            new.touch(exist_ok=False)  # not through a link that appeared meanwhile
            write(new)

        perform("write", path, create)
        if sync:
            sync_to_disk(new)
        perform("rename", path, lambda: os.replace(new, path))
    except BaseException:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, sync: bool = False) -> None:
    """Writes a text file in UTF-8, see `write_file`; surrogates, which UTF-8 does not have, become question marks."""
    write_file(path, lambda new: new.write_bytes(text.encode("utf-8", errors="replace")), sync)


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with all that it contains, if it is there."""
    if path.is_dir() and not path.is_symlink():
        perform("remove", path, lambda: shutil.rmtree(path))
    elif os.path.lexists(path):
        perform("remove", path, lambda: path.unlink(missing_ok=True))


def sync_to_disk(path: Path) -> None:
    """Waits until a file is on the disk, or the names in a folder (Windows has no way to sync a folder)."""
    if path.is_dir() and os.name == "nt":
        return

    def sync() -> None:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    perform("sync", path, sync)


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file.

    Raises:
        OSError: it cannot be read; or it is a pipe, a socket or a device, whose reading may never end.
    """
    check_regular(path)
    return path.read_bytes()


def check_regular(path: Path) -> None:
    """Raises an OSError for a pipe, a socket or a device."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device")
