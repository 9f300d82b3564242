"""Prompts: from a list or a file to left-padded token ids, with the extra columns that rewards may use."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.tokenizer import Tokenizer

RESERVED = {"prompts", "completions", "completion_ids"}
PromptSource = str | PathLike[str] | Sequence[str] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Prompts:
    """P prompts, padded on the left to W columns.

    Attributes:
        texts: the P prompts as text.
        input_ids: int64 [P, W].
        attention_mask: int8 [P, W], 1 on real tokens.
        columns: further fields of each prompt, P values each, handed to the reward functions by name.
    """

    texts: list[str]
    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int8]
    columns: dict[str, list[Any]]


def load_prompts(source: PromptSource, tokenizer: Tokenizer, width: int | None = None) -> Prompts:
    """Read and tokenize prompts.

    Args:
        source: a list of strings; a list of mappings with a "prompt" field (the other fields become columns); or a
            path, `.jsonl` (one such mapping a line) or any other ending (one prompt a line, blank lines skipped).
        tokenizer: turns each prompt into ids, with the special tokens that it puts in front of a text.
        width: W, the number of columns; by default the longest prompt's length.

    Raises:
        ValueError: no prompts, an empty one, one longer than `width`, or a broken line (named with its file).
    """
    if isinstance(source, str | PathLike):
        lines = _read(Path(source))
    else:
        lines = [(f"prompt {i}", row) for i, row in enumerate(source)]
    if not lines:
        name = repr(str(source)) if isinstance(source, str | PathLike) else "the list"
        raise ValueError(f"There must be at least one prompt, got none from {name}.")
    first = lines[0][1]
    fields = list(first) if isinstance(first, Mapping) else None
    texts: list[Any] = []
    columns: dict[str, list[Any]] = {name: [] for name in fields or () if name != "prompt"}
    if reserved := RESERVED & columns.keys():
        raise ValueError(f"{lines[0][0]}: the name {min(reserved)!r} is an argument of every reward; rename the field.")
    for where, row in lines:
        if fields is None:
            texts.append(row)
            continue
        if not isinstance(row, Mapping) or "prompt" not in row or set(row) != set(fields):
            raise ValueError(f"{where}: must have the field 'prompt' and the first one's fields {fields}, got {row!r}.")
        texts.append(row["prompt"])
        for name, values in columns.items():
            values.append(row[name])
    ids = [encode_prompt(text, tokenizer, where) for text, (where, _) in zip(texts, lines, strict=True)]
    width = max(map(len, ids)) if width is None else width
    input_ids = np.full((len(ids), width), blank_id(tokenizer), dtype=np.int64)
    attention_mask = np.zeros((len(ids), width), dtype=np.int8)
    for row, (text, tokens) in enumerate(zip(texts, ids, strict=True)):
        if len(tokens) > width:
            raise ValueError(
                f"{lines[row][0]}: the prompt {text!r} has {len(tokens)} tokens, more than the {width} allowed; "
                "shorten it or raise max_prompt_length."
            )
        input_ids[row, width - len(tokens) :] = tokens
        attention_mask[row, width - len(tokens) :] = 1
    return Prompts(texts, input_ids, attention_mask, columns)


def encode_prompt(text: Any, tokenizer: Tokenizer, where: str = "the prompt") -> list[int]:
    """Ids of one prompt; an error says what is wrong with it, and where it stands."""
    if not isinstance(text, str):
        raise ValueError(f"{where}: a prompt must be a string, got {text!r}.")
    try:
        ids = tokenizer.encode(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not text.strip() or not ids:
        raise ValueError(f"{where}: a prompt must have at least one token, got {text!r}; drop it.")
    return ids


def blank_id(tokenizer: Tokenizer) -> int:
    """What stands in columns that hold no token: never attended to, so any valid id will do."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token_id, int):
            return token_id
    return 0


def _read(path: Path) -> list[tuple[str, Any]]:
    """The rows of a file, each with its `file:line`."""
    if not path.is_file():
        raise ValueError(f"The prompt file {str(path)!r} does not exist.")
    rows: list[tuple[str, Any]] = []
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8.") from None
    for number, line in enumerate(content.split("\n"), start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            rows.append((where, line.strip()))
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not valid JSON ({error.msg}): {line!r}") from None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise ValueError(f"{where}: a line must be an object with the string field 'prompt', got {line!r}")
        rows.append((where, row))
    return rows
