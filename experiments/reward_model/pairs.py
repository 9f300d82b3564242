"""Preference pairs: two completions of one prompt, of which one was preferred; from a file or a `datasets` folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.errors import FlagError
from textenv.data import check_characters, read_data_file

AS_TEXT = 'Write conversations as text, and the text that chosen and rejected both begin with as "prompt" (or "").'


class Pair(NamedTuple):
    """Two completions of one prompt: the preferred one, and the other."""

    prompt: str
    chosen: str
    rejected: str


def read_pairs(path: Path, flag: str = "--pairs") -> list[Pair]:
    """Returns the pairs of a file, or of a folder written by `save_to_disk` of `datasets` (its split "train").

    The file's formats are those of `textenv.data.read_data_file`, with the fields "prompt", "chosen" and "rejected".

    Raises:
        FlagError: another format, a field that is missing or no string, an empty completion, or two equal ones; names
            the file and the line.
    """
    try:
        rows = _read_saved_dataset(path) if path.is_dir() else read_data_file(path, "pair")
    except ValueError as error:
        raise FlagError(f"{flag}: {error}") from error
    pairs = [_pair(where, row) for where, row in rows]
    if not pairs:
        raise FlagError(f"{path} holds no pair.")
    return pairs


def _pair(where: str, row: Any) -> Pair:
    for name in Pair._fields:
        if not isinstance(row, dict) or not isinstance(row.get(name), str):
            fields = row if isinstance(row, dict) else {}
            found = f"{name!r} is {fields[name]!r:.100}" if name in fields else f"no {name!r}"
            hint = f" {AS_TEXT}" if (fields and "prompt" not in fields) or isinstance(fields.get(name), list) else ""
            raise FlagError(
                f'{where}: must be an object with the strings "prompt", "chosen", "rejected"; {found}.{hint}'
            )
        if name != "prompt" and not row[name].strip():
            raise FlagError(f"{where}: the completion {name!r} is empty.")
    if row["chosen"].strip() == row["rejected"].strip():
        ends = "" if row["chosen"] == row["rejected"] else ", apart from white space at their ends"
        raise FlagError(f"{where}: chosen and rejected are the same, {row['chosen']!r}{ends}.")
    return Pair(*(row[name] for name in Pair._fields))


def describe_pair(pair: Pair) -> str:
    """A pair on one line, as error messages show it."""
    return ", ".join(f"{name} {text[:80]!r}" for name, text in pair._asdict().items())


def group_of(pair: Pair, *, one_prompt: bool) -> frozenset[str]:
    """The key of the pairs that belong together: its prompt; where all pairs have one prompt, its two completions."""
    return frozenset((pair.chosen, pair.rejected) if one_prompt else (pair.prompt,))


def have_one_prompt(pairs: list[Pair]) -> bool:
    """Whether all pairs have the same prompt."""
    return len({pair.prompt for pair in pairs}) == 1


def split(pairs: list[Pair], held_out: float, rng: np.random.Generator) -> tuple[list[Pair], list[Pair]]:
    """Splits pairs into those to train on and a share of about `held_out` that is not trained on.

    All pairs of a prompt are on one side. Where there is only one prompt, all pairs of the same two completions are.
    """
    groups: dict[frozenset[str], list[Pair]] = {}
    one_prompt = have_one_prompt(pairs)
    for pair in pairs:
        groups.setdefault(group_of(pair, one_prompt=one_prompt), []).append(pair)
    train: list[Pair] = []
    test: list[Pair] = []
    members = list(groups.values())
    for i in rng.permutation(len(members)):
        (test if len(test) < max(1, round(held_out * len(pairs))) else train).extend(members[i])
    return train, test


def _read_saved_dataset(path: Path) -> list[tuple[str, object]]:
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(f"{str(path)!r} is a folder, which needs datasets: pip install datasets.")
    import datasets

    try:
        data = datasets.load_from_disk(path)
    except Exception as error:  # damaged files raise KeyError, TypeError, Arrow's errors, ...
        raise ValueError(f"{str(path)!r} is not a folder written by datasets' save_to_disk: {error}") from error
    if isinstance(data, datasets.DatasetDict):
        if "train" not in data:
            raise ValueError(f"{str(path)!r} has no split 'train', only {', '.join(data)}; save one of them alone.")
        data = data["train"]
    # the strings alone, as they are: other columns, and formats that the folder names, make datasets import libraries
    # or open the files that a row names
    data = data.with_format(None)
    texts = [
        name for name in Pair._fields if getattr(data.features.get(name), "dtype", "") in ("string", "large_string")
    ]
    if other := [name for name in Pair._fields if name in data.features and name not in texts]:
        kind = repr(data.features[other[0]])
        hint = f" {AS_TEXT}" if "'role'" in kind else ""
        raise ValueError(f"{str(path)!r}: {other[0]!r} must be strings, but is {kind:.100}.{hint}")
    rows = (
        [(f"{path}, row {number}", row) for number, row in enumerate(data.select_columns(texts))] if len(data) else []
    )
    for where, row in rows:
        for text in row.values():
            check_characters(text or "", where)
    return rows
