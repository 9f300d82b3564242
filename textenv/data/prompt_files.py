"""Files of prompts or of pairs of completions: .txt, .jsonl, .ndjson, .json, .csv, .parquet."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from textenv.arguments import shown
from textenv.data.columns import Row, column_rows, is_messages
from textenv.data.files import (
    check_characters,
    check_file,
    parse_json,
    parse_json_at,
    read_lines,
    read_text,
    strings_in,
)

RowKind = Literal["prompt", "pair"]
FIELDS: dict[RowKind, tuple[str, ...]] = {"prompt": ("prompt",), "pair": ("prompt", "chosen", "rejected")}


def read_prompt_file(path: Path) -> list[Row]:
    """Returns the rows of a prompt file, each with its place: see `read_data_file`.

    Raises:
        ValueError: as in `read_data_file`.
    """
    if os.path.isdir(path):
        raise ValueError(
            f"The prompts must be a file, got the folder {str(path)!r}; load it and pass what it holds, for example "
            "datasets.load_from_disk(folder)['train']."
        )
    if path.suffix.lower() not in READERS and not os.path.exists(path):
        raise ValueError(f"The file {shown(str(path))} does not exist; pass prompts themselves as a list: [text, ...].")
    return read_data_file(path, "prompt")


def read_data_file(path: Path, kind: RowKind) -> list[Row]:
    """Returns the rows of a file of prompts or of pairs, each with its place.

    The end of the name is the format, and the content must be of that format. `.txt`: a prompt a line, as plain text.
    `.jsonl`, `.ndjson`, `.json`: a JSON value a line, or one array, or an object of columns. `.csv`, `.parquet`:
    columns.

    Args:
        path: the file.
        kind: what a row is. A row may have any fields; those of a pair are not checked here.

    Raises:
        ValueError: the name has no such end, the content is of another format, or pyarrow is missing.
    """
    check_file(path)
    formats = [end for end in READERS if kind == "prompt" or end != ".txt"]
    if (end := path.suffix.lower()) not in formats:
        raise ValueError(
            f"The name of a file of {kind}s must end in one of {', '.join(formats)}, got {str(path)!r}; convert it."
        )
    return READERS[end](path, kind)


def _text_rows(path: Path, kind: RowKind) -> list[Row]:
    lines = read_lines(path)
    if lines and any(_is_json_row(text) for text in (lines[0][1], "\n".join(line for _, line in lines))):
        raise ValueError(
            f"{lines[0][0]}: a .txt file must have a prompt a line as plain text, got JSON: {lines[0][1][:200]!r}; "
            "rename the file to .json."
        )
    return list(lines)


def _json_rows(path: Path, kind: RowKind) -> list[Row]:
    lines = read_lines(path)
    if not lines:
        return []
    first = lines[0][1]
    whole = first[0] == "[" or path.suffix.lower() == ".json"  # else an error names its line
    if len(lines) > 1 and (_is_json(first) or not whole):
        return [(where, parse_json_at(where, line)) for where, line in lines]
    where, value = lines[0][0], parse_json_at(str(path) if len(lines) > 1 else lines[0][0], read_text(path))
    if isinstance(value, list) and not is_messages(value):
        return _placed(value, path, kind)
    prompts = value.get("prompt", value.get("messages")) if isinstance(value, dict) else ""
    if isinstance(prompts, str) or is_messages(prompts) or (kind == "pair" and not isinstance(prompts, list)):
        return [(where, value)]
    return _placed([row for _, row in column_rows(value, str(path))], path, kind)


def _csv_rows(path: Path, kind: RowKind) -> list[Row]:
    reader = csv.reader(io.StringIO(read_text(path)), strict=True)
    rows: list[Row] = []
    names: list[str] = []
    start = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}:{start}: not valid CSV ({error}).") from None
        if cells is None:
            return rows
        where, start = f"{path}:{start}", reader.line_num + 1
        if not cells:
            continue
        if not names:
            names = cells
            if not set(FIELDS[kind]) & set(names) or len(set(names)) < len(names):
                raise ValueError(
                    f"{where}: the first line must name the columns, each once, with "
                    f"{', '.join(map(repr, FIELDS[kind]))} among them, got {names}."
                )
        elif len(cells) != len(names):
            raise ValueError(f"{where}: must have {len(names)} values, one per column {names}, got {cells}.")
        else:
            rows.append((where, dict(zip(names, cells, strict=True))))


def _parquet_rows(path: Path, kind: RowKind) -> list[Row]:
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(f"{str(path)!r} needs pyarrow: pip install pyarrow. Or save it as .jsonl.")
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        rows = _placed(table.to_pylist(), path, kind)
    except Exception as error:  # damaged files raise Arrow's errors, OSError, UnicodeDecodeError, ...
        raise ValueError(f"{path}: not valid Parquet ({str(error).splitlines()[0]}).") from error
    if len(set(table.column_names)) < table.num_columns:
        raise ValueError(f"{path}: each column must have a name of its own, got {table.column_names}.")
    for where, row in rows:
        for string in strings_in(row):
            check_characters(string, where)
    return rows


def _placed(rows: Sequence[object], path: Path, kind: RowKind) -> list[Row]:
    """Rows with their places, for files in which a row has no line."""
    return [(f"{path}, {kind} {i}", row) for i, row in enumerate(rows)]


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_json_row(text: str) -> bool:
    """Whether a text is a JSON object, or an array of objects or strings."""
    value: Any = parse_json(text) if text[0] in "[{" and _is_json(text) else None
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and all(isinstance(row, dict | str) for row in value)
    )


READERS: dict[str, Callable[[Path, RowKind], list[Row]]] = {
    ".txt": _text_rows,
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
