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
    rows: list[Any] = _read(Path(source)) if isinstance(source, str | PathLike) else list(source)
    if not rows:
        raise ValueError(f"There must be at least one prompt, got none from {_name(source)}.")
    texts, columns = [], {}
    if isinstance(rows[0], Mapping):
        fields = list(rows[0])
        for i, row in enumerate(rows):
            if not isinstance(row, Mapping) or "prompt" not in row or list(row) != fields:
                raise ValueError(
                    f"Prompt {i} of {_name(source)} must have the field 'prompt' and the same fields as the first "
                    f"({fields}), got {row!r}."
                )
        texts = [row["prompt"] for row in rows]
        columns = {name: [row[name] for row in rows] for name in fields if name != "prompt"}
    else:
        texts = list(rows)
    return pad_left(texts, columns, tokenizer, width)


def pad_left(texts: list[Any], columns: dict[str, list[Any]], tokenizer: Tokenizer, width: int | None) -> Prompts:
    """Tokenize `texts` and pad them on the left to `width` columns."""
    ids = [encode_prompt(text, tokenizer) for text in texts]
    width = max(map(len, ids)) if width is None else width
    input_ids = np.full((len(ids), width), blank_id(tokenizer), dtype=np.int64)
    attention_mask = np.zeros((len(ids), width), dtype=np.int8)
    for row, (text, tokens) in enumerate(zip(texts, ids, strict=True)):
        if len(tokens) > width:
            raise ValueError(
                f"The prompt {text!r} has {len(tokens)} tokens, more than the {width} allowed; "
                "shorten it or raise max_prompt_length."
            )
        input_ids[row, width - len(tokens) :] = tokens
        attention_mask[row, width - len(tokens) :] = 1
    return Prompts(texts, input_ids, attention_mask, columns)


def encode_prompt(text: Any, tokenizer: Tokenizer) -> list[int]:
    """Ids of one prompt; an error says what is wrong with it."""
    if not isinstance(text, str):
        raise ValueError(f"A prompt must be a string, got {text!r}.")
    ids = tokenizer.encode(text)
    if not text.strip() or not ids:
        raise ValueError(f"A prompt must have at least one token, got {text!r}; drop it from the list.")
    return ids


def blank_id(tokenizer: Tokenizer) -> int:
    """What stands in columns that hold no token: never attended to, so any valid id will do."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token_id, int):
            return token_id
    return 0


def _read(path: Path) -> list[Any]:
    if not path.is_file():
        raise ValueError(f"The prompt file {str(path)!r} does not exist.")
    rows: list[Any] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            rows.append(line.strip())
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not valid JSON ({error.msg}): {line!r}") from None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise ValueError(f"{path}:{number}: a line must be an object with the string field 'prompt', got {line!r}")
        rows.append(row)
    return rows


def _name(source: Any) -> str:
    return repr(str(source)) if isinstance(source, str | PathLike) else "the list"
