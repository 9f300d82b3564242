"""A file that one of several OS processes creates."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import agents.files.atomic as atomic
from agents.files.json_objects import write_json


def create_json(path: Path, content: Mapping[str, object], writer: str) -> bool:
    """Writes a JSON object as `write_json` does, unless there is a file (or anything else) of this name.

    Of several OS processes that call this at once, on one machine or on several that share the disk, one writes the
    file. Nobody sees it before it is whole, except on a file system without hard links.

    Args:
        path: the file.
        content: the JSON object.
        writer: a name that no other process that calls this at the same time has, for the file beside it.

    Returns:
        Whether the file was written.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    new = atomic.beside(path, f"{writer.replace(os.sep, '-')}.new")
    write_json(new, content, sync=True)

    def link() -> bool:
        try:
            os.link(new, path)  # fails where the name is taken; a rename would replace the file
        except FileExistsError:
            return False
        except OSError:  # no hard links here
            return _copy(new, path)
        return True

    try:
        return atomic.perform("create", path, link)
    finally:
        with suppress(OSError):
            new.unlink()


def _copy(new: Path, path: Path) -> bool:
    try:
        file = path.open("xb")
    except FileExistsError:
        return False
    with file:
        file.write(new.read_bytes())
    return True
