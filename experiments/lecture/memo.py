"""Memo: pieces of a claim that were measured are kept in files, so that an interrupted claim resumes after them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from agents import files
from agents.files import JsonObject
from textenv.data import printable


class Remember(Protocol):
    """Returns what `measure` returned, perhaps in an earlier call with the same name."""

    def __call__(self, name: str, measure: Callable[[], object]) -> Any:
        """Returns the result of `measure()` as JSON holds it: a tuple becomes a list."""


def no_memo(name: str, measure: Callable[[], object]) -> Any:
    """Measures every time."""
    return json.loads(json.dumps(measure()))


class Memo:
    """Keeps each piece in a JSON file with a checksum.

    Args:
        folder: of the files; it is made with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, measure: Callable[[], object]) -> Any:
        """Returns the piece of this name; measures it if it is not in the folder, or its file is damaged."""
        if (kept := self.read(name)) is not None:
            return kept["value"]
        value = no_memo(name, measure)
        with files.storage_errors("make", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        files.write_json(self._path(name), {"name": name, "value": value}, sync=True)
        return value

    def read(self, name: str) -> JsonObject | None:
        """Returns `name` and `value` of a piece; None if there is none."""
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            content = files.read_json(path)
            if content.get("name") != name or "value" not in content:
                raise files.DamagedFile(f"{path} holds another piece than {name!r}.")
        except files.DamagedFile as error:
            print(printable(f"{error} It is measured again."))
            return None
        return content

    def _path(self, name: str) -> Path:
        return self.folder / (re.sub(r"[^A-Za-z0-9.=_-]+", "-", name) + ".json")
