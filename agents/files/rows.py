"""Rows: a file of JSON objects, one a line, that is only appended to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import agents.files.atomic as atomic
from agents.files.json_objects import DamagedFile, JsonObject, finite, parse


class Rows:
    """A file of JSON objects, one a line, that is only appended to.

    Args:
        path: the file; created if it does not exist.

    Raises:
        StorageError: it cannot be opened, or is a link.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self.descriptor = atomic.perform("open", path, lambda: os.open(path, flags, 0o666))
        content = atomic.perform("read", path, lambda: atomic.read_bytes(path))
        self.size, self.digest = len(content), hashlib.sha256(content)

    def append(self, row: Mapping[str, object]) -> None:
        """Appends a row and hands it to the operating system.

        Raises:
            StorageError: the disk is full; no part of the row is in the file.
        """
        line = (json.dumps(finite(row), allow_nan=False) + "\n").encode()

        def write() -> None:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]

        try:
            atomic.perform("append to", self.path, write)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self.descriptor, self.size)
            raise
        self.digest.update(line)
        self.size += len(line)

    def sync(self) -> JsonObject:
        """Waits until all rows are on the disk; returns `size` and `sha256` of the file."""
        atomic.perform("sync", self.path, lambda: os.fsync(self.descriptor))
        return {"size": self.size, "sha256": self.digest.hexdigest()}

    def close(self) -> None:
        """Closes the file."""
        os.close(self.descriptor)


def read_rows(path: Path) -> list[JsonObject]:
    """Returns the rows of a file of `Rows`, without a last one that was cut off; none if there is no file.

    Raises:
        DamagedFile: another row than the last is not a JSON object, or the file cannot be read.
    """
    try:
        return parse_rows(path, atomic.read_bytes(path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}.") from error


def parse_rows(path: Path, content: bytes) -> list[JsonObject]:
    """Returns the rows in the content of a file of `Rows`, see `read_rows`."""
    rows = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):  # a whole row ends with a line feed
        try:
            row = parse(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DamagedFile(f"{path}:{number} must be a JSON object, got {line[:100].decode(errors='replace')!r}.")
        rows.append(row)
    return rows
