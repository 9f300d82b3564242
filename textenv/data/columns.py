"""Prompts as columns: a mapping from each field's name to its values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textenv.arguments import shown

Row = tuple[str, object]  # the place of a prompt, for error messages, and the prompt or its fields


def is_messages(value: object) -> bool:
    """Whether a value looks like one conversation, and not like a list of prompts."""
    return isinstance(value, list | tuple) and len(value) > 0 and isinstance(value[0], Mapping) and "role" in value[0]


def column_rows(columns: Mapping[object, object], where: str) -> list[Row]:
    """Returns one row per prompt of `{"prompt": [...], ...}`, each with its place.

    Args:
        columns: per field, a list with one value per prompt.
        where: begins each place and each error.

    Raises:
        ValueError: there is no column "prompt" or "messages", one column is no list, or their lengths differ.
    """
    names = list(columns)
    if not {"prompt", "messages"} & set(names):
        first = repr(names[0]) if names else "NAME"
        raise ValueError(
            f"{where}: must have the column 'prompt' or 'messages', got the keys {shown(names)}. If they are splits of "
            f"a data set, pass one of them: prompts=data[{first}]."
        )
    values = {name: _values(column) for name, column in columns.items()}
    for name, column in values.items():
        if column is None:
            raise ValueError(
                f"{where}: the column {name!r} must be a list with one value per prompt, got {shown(columns[name])}; "
                "pass a single prompt as a list of one."
            )
    lengths = {name: len(column) for name, column in values.items() if column is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{where}: all columns must have the same length, got {lengths}.")
    rows = zip(*(column or [] for column in values.values()), strict=True)
    return [(f"{where}, prompt {i}", dict(zip(names, row, strict=True))) for i, row in enumerate(rows)]


def _values(column: Any) -> list[Any] | None:
    """A column as a list; None if it is no column: a text, one conversation, a mapping or a number."""
    if isinstance(column, str | bytes | bytearray | Mapping | set | frozenset) or is_messages(column):
        return None
    try:
        return list(column)
    except TypeError:
        return None
