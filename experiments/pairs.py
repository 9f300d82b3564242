"""Preference pairs: two answers to one prompt, of which people chose one; from a file or a `datasets` folder."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.config import FlagError


class Pair(NamedTuple):
    """Two answers to one prompt."""

    prompt: str
    chosen: str
    rejected: str


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a JSONL file, or of a folder that `datasets`' `save_to_disk` wrote (its split "train").

    Raises:
        FlagError: names the file and the line: no JSON, a missing field, an empty answer, twice the same answer.
    """
    if not path.exists():
        raise FlagError(f"--pairs: the file {str(path)!r} does not exist.")
    pairs = [_pair(where, row) for where, row in (_saved(path) if path.is_dir() else _lines(path))]
    if not pairs:
        raise FlagError(f"{path} holds no pair.")
    return pairs


def _pair(where: str, row: Any) -> Pair:
    for name in Pair._fields:
        if not isinstance(row, dict) or not isinstance(row.get(name), str):
            raise FlagError(f'{where} must be an object with the texts "prompt", "chosen", "rejected"; no {name!r}.')
        if name != "prompt" and not row[name].strip():
            raise FlagError(f"{where}: the answer {name!r} is empty.")
    if row["chosen"] == row["rejected"]:
        raise FlagError(f"{where}: chosen and rejected are the same, {row['chosen']!r}.")
    return Pair(*(row[name] for name in Pair._fields))


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FlagError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}).") from None
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, json.loads(line)
        except json.JSONDecodeError as error:
            raise FlagError(f"{where} is no JSON ({error}).") from error


def _saved(path: Path) -> Iterator[tuple[str, Any]]:
    if importlib.util.find_spec("datasets") is None:
        raise FlagError(f"--pairs {str(path)!r} is a folder, which needs datasets: pip install datasets.")
    import datasets

    try:
        data = datasets.load_from_disk(path)
    except (FileNotFoundError, ValueError) as error:
        raise FlagError(f"--pairs {str(path)!r} is no folder that datasets' save_to_disk wrote: {error}") from error
    if isinstance(data, datasets.DatasetDict):
        if "train" not in data:
            raise FlagError(f"--pairs {str(path)!r} has no split 'train', only {', '.join(data)}.")
        data = data["train"]
    for number, row in enumerate(data):
        yield f"{path}, row {number}", row
