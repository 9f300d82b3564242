"""Reads text files. What is read comes with its place, such as `file:line`, for error messages."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FORBIDDEN = {"\0": "a NUL character", "\ufeff": "a byte-order mark"}  # invisible, and never meant in a text


def read_text(path: Path) -> str:
    """Returns the text of a UTF-8 file, without a byte-order mark at its beginning.

    Raises:
        ValueError: the file does not exist, cannot be read, is not UTF-8, or has a NUL or a byte-order mark inside.
    """
    check_file(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    for number, line in enumerate(text.split("\n"), start=1):
        check_characters(line, f"{path}:{number}")
    return text


def check_file(path: Path) -> None:
    """Raises a ValueError unless there is a regular file of that name."""
    if not os.path.isfile(path):  # False also for a name that no file can have, where pathlib raises
        raise ValueError(
            f"The file {str(path)!r} {'is no regular file' if os.path.exists(path) else 'does not exist'}."
        )


def read_lines(path: Path) -> list[tuple[str, str]]:
    """Returns the non-empty lines of a UTF-8 file as `(file:line, line)`; only a line feed ends a line.

    Raises:
        ValueError: as in `read_text`.
    """
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [(f"{path}:{number}", line.strip()) for number, line in lines if line.strip()]


def read_jsonl(path: Path) -> list[tuple[str, object]]:
    """Returns the values of a file with one JSON value per line as `(file:line, value)`.

    Raises:
        ValueError: as in `read_lines`, a line is not valid JSON, or a key occurs twice in an object.
    """
    return [(where, parse_json_at(where, line)) for where, line in read_lines(path)]


def parse_json_at(where: str, text: str) -> Any:
    """Returns the value of a JSON text of a file; `where` begins the error.

    Raises:
        ValueError: it is not valid JSON, a key occurs twice in an object, or a string has a forbidden character.
    """
    try:
        value = parse_json(text)
        json.dumps(value, ensure_ascii=False).encode()  # JSON can encode a lone surrogate, UTF-8 cannot
        strings = list(strings_in(value))
    except (ValueError, RecursionError) as error:
        reason, line = getattr(error, "msg", error), getattr(error, "lineno", 1)
        if line > 1:
            where, text = f"{where}:{line}", text.split("\n")[line - 1]
        raise ValueError(f"{where}: not valid JSON ({reason}): {text[:200]!r}") from None
    for string in strings:  # which may have written such a character as an escape
        check_characters(string, where)
    return value


def parse_json(text: str, parse_constant: Callable[[str], object] | None = None) -> Any:
    """Returns the value of a JSON text.

    Args:
        text: the JSON text.
        parse_constant: called with NaN, Infinity and -Infinity, which JSON does not have; by default they are numbers.

    Raises:
        ValueError: it is not valid JSON, or a key occurs twice in an object: one of the two values would be lost.
    """
    return json.loads(text, object_pairs_hook=_distinct_keys, parse_constant=parse_constant)


def check_characters(text: str, where: str) -> None:
    """Raises a ValueError that begins with `where` if a text has a NUL or a byte-order mark."""
    for character, name in FORBIDDEN.items():
        if character in text:
            raise ValueError(f"{where}: {name} (at character {text.index(character)}) in {text[:200]!r}; remove it.")


def _distinct_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} occurs twice")
    return content


def strings_in(value: object) -> Iterator[str]:
    """Yields all strings in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value:
            yield from strings_in(inner)
        if isinstance(value, dict):
            yield from strings_in(list(value.values()))
