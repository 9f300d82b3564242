"""JSON objects that carry a checksum, so that one which was changed or cut off is not taken for what was written."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from agents.files.atomic import read_bytes, write_text
from textenv.data import parse_json

JsonObject = dict[str, Any]  # whose values are as they were written, and are checked where they are read

CHECKSUM = "checksum"  # the field that holds the SHA-256 of the others


class DamagedFile(ValueError):
    """A file is missing, cut off or changed. The message names it."""


def write_json(path: Path, content: Mapping[str, object], sync: bool = False) -> None:
    """Writes a JSON object with its checksum, see `write_file`; numbers that are not finite become null."""
    plain = finite(content)
    write_text(path, json.dumps(plain | {CHECKSUM: _checksum_of(plain)}, indent=2, allow_nan=False) + "\n", sync)


def read_json(path: Path) -> JsonObject:
    """Reads a file of `write_json`.

    Raises:
        DamagedFile: it is missing, not a JSON object, or not what was written.
    """
    content = read_object(path)
    check_unchanged(path, content)
    return {name: value for name, value in content.items() if name != CHECKSUM}


def read_object(path: Path) -> JsonObject:
    """Reads a file that holds a JSON object.

    Raises:
        DamagedFile: it is missing, or holds none.
    """
    try:
        content = parse(read_bytes(path))
    except OSError as error:
        raise DamagedFile(f"{path} must be a JSON object, but cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise DamagedFile(f"{path} must be a JSON object, but cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise DamagedFile(f"{path} must be a JSON object, got {content!r:.100}.")
    return content


def parse(content: bytes) -> Any:
    """Returns a JSON value.

    Raises:
        ValueError: not UTF-8, not JSON (which has no NaN), a key occurs twice in an object, or nested too deeply.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"JSON has no {name}")

    try:
        return parse_json(content.decode("utf-8"), parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def check_unchanged(path: Path, content: Mapping[str, object]) -> None:
    """Raises a DamagedFile unless a JSON object has the checksum with which it was written."""
    rest = {name: value for name, value in content.items() if name != CHECKSUM}
    if content.get(CHECKSUM) != _checksum_of(rest):
        raise DamagedFile(f"{path} was changed after it was written: its checksum is that of another content.")


def check_types(path: Path, content: Mapping[str, object], types: Mapping[str, type | UnionType]) -> None:
    """Raises a DamagedFile unless the fields of a JSON object are there and have their types.

    Args:
        path: the file, for the error message.
        content: the JSON object.
        types: by name of a field: str, bool, dict or list; int, an integer of at least 0; float, a finite number; or a
            union of these with None.
    """
    for name, kind in types.items():
        value = content.get(name)
        kinds = get_args(kind) or (kind,)
        if isinstance(value, bool):
            fits = bool in kinds
        elif isinstance(value, int | float):
            whole = int in kinds and isinstance(value, int) and value >= 0
            fits = whole or (float in kinds and abs(value) <= sys.float_info.max)
        else:
            fits = name in content and isinstance(value, kind)
        if not fits:
            expected = " or ".join(_TYPE_NAMES.get(each, each.__name__) for each in kinds)
            raise DamagedFile(f"{path}: {name} must be {expected}, got {value!r:.100}.")


def check_names(path: Path, field: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises a DamagedFile if a field of a JSON object has names that are not known."""
    known = sorted(known)
    if unknown := sorted(set(names) - set(known)):
        raise DamagedFile(f"{path}: {field} must be among {', '.join(known)}, got {unknown[0]!r:.100}.")


_TYPE_NAMES = {
    str: "a string",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    int: "an integer of at least 0",
    float: "a finite number",
    type(None): "null",
}


def finite(content: object) -> Any:
    """A copy of JSON content in which None replaces the numbers that are not finite: JSON has no NaN."""
    if isinstance(content, dict):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _checksum_of(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
