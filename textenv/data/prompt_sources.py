"""What holds prompts: lists, streams, data sets, tables, columns and files. All become rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from textenv.arguments import shown
from textenv.data.columns import Row, column_rows
from textenv.data.prompt_files import read_prompt_file

MAX_PROMPTS = 2**22  # a stream that is longer may have no end


def read_rows(source: object) -> list[Row]:
    """Returns the rows of any source of prompts, each with its place.

    Data sets and tables of other libraries are recognised by their methods, so that none of these is imported.

    Args:
        source: see `textenv.data.load_prompts`.

    Raises:
        ValueError: it holds no prompts in a definite order, has no end, or is a file that cannot be read.
    """
    if isinstance(source, str | PathLike):
        return read_prompt_file(Path(source))
    if isinstance(source, Mapping):
        return column_rows(source, "prompts")
    if isinstance(source, bytes | bytearray | set | frozenset) or hasattr(source, "readline"):
        raise ValueError(
            f"Prompts must be in a list, a data set, a table or a file named by its path, got {_kind(source)} "
            f"{shown(source)}; {_advice(source)}."
        )
    rows = list(islice(_iterate(source), MAX_PROMPTS + 1))
    if len(rows) > MAX_PROMPTS:
        raise ValueError(
            f"There must be at most {MAX_PROMPTS} prompts, got more from {_kind(source)}; if it is a stream, pass its "
            "beginning: itertools.islice(stream, number)."
        )
    return [(f"prompt {i}", row) for i, row in enumerate(rows)]


def _iterate(source: Any) -> Iterable[object]:
    """The rows of a table, a data set, a list or a stream."""
    if hasattr(source, "to_pylist"):  # Arrow
        rows: Iterable[object] = source.to_pylist()
        return rows
    if hasattr(source, "to_dicts"):  # a Polars data frame
        rows = source.to_dicts()
        return rows
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # a pandas data frame
        names = list(source.columns)
        if len(set(names)) < len(names):
            raise ValueError(f"Each column of the prompts must have a name of its own, got {shown(names)}.")
        rows = source.to_dict("records")
        return rows
    if hasattr(source, "with_format"):  # a data set, whose format may make tensors of its values
        source = source.with_format(None)
    if not hasattr(source, "__iter__") and hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return (source[i] for i in range(len(source)))  # a data set of torch
    try:
        rows = iter(source)
    except TypeError:
        raise ValueError(
            "Prompts must be in a list, a data set, a table or a file named by its path, got "
            f"{_kind(source)} {shown(source)}; {_advice(source)}."
        ) from None
    return rows


def _kind(source: object) -> str:
    return f"the {type(source).__name__}"


def _advice(source: object) -> str:
    if callable(source):
        return "pass what it returns"
    if isinstance(source, set | frozenset):
        return "a set has no order: pass sorted(prompts)"
    if hasattr(source, "readline"):
        return "pass its path"
    return "pass a list of texts, of conversations, or of mappings with the field 'prompt'"
