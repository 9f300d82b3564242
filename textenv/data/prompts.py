"""Prompts: reads a list or a file into left-padded token ids, and keeps the extra columns that rewards may use."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.data.files import read_jsonl, read_lines
from textenv.data.tokenizers import Tokenizer

RESERVED = {"prompts", "completions", "completion_ids"}
Messages = Sequence[Mapping[str, str]]
PromptSource = str | PathLike[str] | Sequence[str] | Sequence[Messages] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Prompts:
    """P prompts, left-padded to W columns.

    Attributes:
        texts: the P prompts as text.
        input_ids: int64 [P, W].
        attention_mask: int8 [P, W], 1 on real tokens.
        columns: further fields of the prompts, P values per name. Reward functions get them as keyword arguments.
    """

    texts: list[str]
    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int8]
    columns: dict[str, list[Any]]


def load_prompts(source: PromptSource, tokenizer: Tokenizer, width: int | None = None) -> Prompts:
    """Reads and tokenizes prompts.

    Args:
        source: a list of strings; a list of mappings with a "prompt" field (the other fields become columns); or a
            path: `.jsonl` has one such mapping per line, any other file one prompt per line (empty lines are skipped).
            A conversation, `[{"role": ..., "content": ...}]`, may replace the string or be the field "messages". Its
            prompt is the tokenizer's chat template applied to it, up to the start of the assistant's turn. The messages
            become the column `messages`.
        tokenizer: encodes each prompt, with the special tokens that it adds at the beginning.
        width: W, the number of columns; by default the length of the longest prompt.

    Raises:
        ValueError: there are no prompts, one is empty or longer than `width`, or a line is malformed (the message
            names file and line).
    """
    if isinstance(source, str | PathLike):
        rows = _read_rows(Path(source))
    else:
        rows = [(f"prompt {i}", row) for i, row in enumerate(source)]
    if not rows:
        name = repr(str(source)) if isinstance(source, str | PathLike) else "the list"
        raise ValueError(f"There must be at least one prompt, got none from {name}.")
    rows = [(where, _normalize_row(row)) for where, row in rows]
    first = rows[0][1]
    fields = list(first) if isinstance(first, Mapping) else None
    prompts: list[Any] = []
    columns: dict[str, list[Any]] = {name: [] for name in fields or () if name != "prompt"}
    if reserved := RESERVED & columns.keys():
        raise ValueError(f"{rows[0][0]}: the name {min(reserved)!r} is an argument of every reward; rename the field.")
    for where, row in rows:
        if fields is None:
            prompts.append(row)
            continue
        if not isinstance(row, Mapping) or not {"prompt", "messages"} & set(row) or set(row) != set(fields):
            raise ValueError(f"{where}: must have the field 'prompt' and the first one's fields {fields}, got {row!r}.")
        prompts.append(row["prompt"] if "prompt" in row else row["messages"])
        for name, values in columns.items():
            values.append(row[name])
    encoded = [encode_prompt(prompt, tokenizer, where) for prompt, (where, _) in zip(prompts, rows, strict=True)]
    texts, ids = [text for text, _ in encoded], [tokens for _, tokens in encoded]
    width = max(map(len, ids)) if width is None else width
    input_ids = np.full((len(ids), width), padding_id(tokenizer), dtype=np.int64)
    attention_mask = np.zeros((len(ids), width), dtype=np.int8)
    for index, (text, tokens) in enumerate(zip(texts, ids, strict=True)):
        if len(tokens) > width:
            raise ValueError(
                f"{rows[index][0]}: the prompt {text!r} has {len(tokens)} tokens, more than the {width} allowed; "
                "shorten it or raise max_prompt_length."
            )
        input_ids[index, width - len(tokens) :] = tokens
        attention_mask[index, width - len(tokens) :] = 1
    return Prompts(texts, input_ids, attention_mask, columns)


def encode_prompt(prompt: Any, tokenizer: Tokenizer, where: str = "the prompt") -> tuple[str, list[int]]:
    """Returns one prompt, a string or a conversation, as text and as ids.

    Raises:
        ValueError: it is neither, it is empty, or the tokenizer refuses it; the message begins with `where`.
    """
    try:
        if is_conversation(prompt):
            prompt = _render_chat(prompt, tokenizer)
            ids = tokenizer.encode(prompt, add_special_tokens=False)  # the template has added them
        elif isinstance(prompt, str):
            ids = tokenizer.encode(prompt)
        else:
            raise ValueError(
                f"a prompt must be a string, or messages with the strings role and content, got {prompt!r}."
            )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not prompt.strip() or not ids:
        raise ValueError(f"{where}: a prompt must have at least one token, got {prompt!r}; drop it.")
    return prompt, ids


def is_conversation(prompt: Any) -> bool:
    """Whether it is a list of messages, each with the strings `role` and `content`."""
    return (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, str)
        and len(prompt) > 0
        and all(isinstance(m, Mapping) and all(isinstance(m.get(k), str) for k in ("role", "content")) for m in prompt)
    )


def padding_id(tokenizer: Tokenizer) -> int:
    """Token id of padding columns: any valid id, because attention skips padding."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token_id, int):
            return token_id
    return 0


def _render_chat(messages: Messages, tokenizer: Any) -> str:
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError("messages need a tokenizer with a chat template: set tokenizer.chat_template or pass strings.")
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template may raise anything, jinja's own errors included
        raise ValueError(f"the chat template refuses {messages!r}: {error}") from error
    return str(text)


def _normalize_row(row: Any) -> Any:
    """Moves a conversation that is the row, or its "prompt" field, to the field "messages"."""
    if is_conversation(row):
        return {"messages": row}
    if isinstance(row, Mapping) and is_conversation(row.get("prompt")):
        return {"messages" if name == "prompt" else name: value for name, value in row.items()}
    return row


def _read_rows(path: Path) -> list[tuple[str, Any]]:
    """Returns the rows of a file, each with its `file:line`."""
    if path.suffix != ".jsonl":
        return list(read_lines(path))
    rows = read_jsonl(path)
    for where, row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("prompt", row.get("messages")), str | list):
            raise ValueError(
                f"{where}: a line must be an object with the string field 'prompt', or 'messages', got "
                f"{json.dumps(row, ensure_ascii=False)!r}"
            )
    return rows
