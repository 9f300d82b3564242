"""Text files, line by line, each line with its `file:line` for the error that it may cause."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[tuple[str, str]]:
    """The lines of a UTF-8 file that are not blank; a line ends at a line feed and nowhere else.

    Raises:
        ValueError: no such file, or not UTF-8.
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
    """The values of a file that has one JSON value a line.

    Raises:
        ValueError: as `read_lines`, or a line that is not JSON.
    """
    rows = []
    for where, line in read_lines(path):
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()  # a lone surrogate is no text, though JSON can write it
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)
            raise ValueError(f"{where}: not valid JSON ({reason}): {line[:200]!r}") from None
        rows.append((where, row))
    return rows
