"""Reads text files line by line. Each line comes with its `file:line`, for error messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[tuple[str, str]]:
    """Returns the non-empty lines of a UTF-8 file as `(file:line, line)`; only a line feed ends a line.

    Raises:
        ValueError: the file does not exist or is not UTF-8.
    """
    if not path.is_file():
        raise ValueError(f"The file {str(path)!r} does not exist.")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8.") from None
    numbered = enumerate(content.split("\n"), start=1)
    return [(f"{path}:{number}", line.strip()) for number, line in numbered if line.strip()]


def read_jsonl(path: Path) -> list[tuple[str, Any]]:
    """Returns the values of a file with one JSON value per line as `(file:line, value)`.

    Raises:
        ValueError: as in `read_lines`, or a line is not valid JSON.
    """
    rows = []
    for where, line in read_lines(path):
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()  # JSON can encode a lone surrogate, UTF-8 cannot
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)
            raise ValueError(f"{where}: not valid JSON ({reason}): {line[:200]!r}") from None
        rows.append((where, row))
    return rows
