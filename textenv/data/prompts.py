"""Prompts: tokenizes what users pass into left-padded ids, and keeps the further fields that rewards may use."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.arguments import shown
from textenv.data.control_characters import printable
from textenv.data.conversations import ConversationText, Message, messages_of, read_messages
from textenv.data.files import check_characters
from textenv.data.prompt_sources import read_rows
from textenv.data.special_tokens import EncodedText, encode_beginning, encode_chat
from textenv.data.tokenizers import Tokenizer

PROMPT_FIELDS = ("prompt", "messages")  # where a row has both, its prompt is "prompt"
# arguments of every reward, or of the methods that rewards may be
RESERVED = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "self", "cls"}
TEMPLATE_FIELD = "chat_template_kwargs"  # TRL's name
# arguments of apply_chat_template that are set here, and names by which transformers passes the messages on
SET_HERE = {"conversation", "tokenize", "add_generation_prompt", "continue_final_message", "return_dict"}
SET_HERE |= {"conversations", "messages"}
PASSED_ON = {"tools", "documents"}  # arguments of apply_chat_template that are variables of the template
PromptSource = str | PathLike[str] | Mapping[str, Sequence[object]] | Iterable[object]


@dataclass(frozen=True)
class Prompts:
    """P prompts, left-padded to W columns.

    Attributes:
        texts: the P prompts as text; those of conversations are `ConversationText`, with the messages.
        input_ids: int64 [P, W].
        attention_mask: int8 [P, W], 1 on real tokens.
        columns: further fields of the prompts, P values per name. Reward functions get them as keyword arguments.
    """

    texts: list[str]
    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int8]
    columns: dict[str, list[object]]

    def select(self, rows: Sequence[int]) -> Prompts:
        """Some of the prompts, by their indices, in that order; W stays."""
        columns = {name: [values[i] for i in rows] for name, values in self.columns.items()}
        index = np.asarray(rows, dtype=np.int64)
        return Prompts([self.texts[i] for i in rows], self.input_ids[index], self.attention_mask[index], columns)

    def columns_of(self, prompt: Sequence[int]) -> dict[str, list[object]]:
        """Returns the columns of some prompts, as a reward gets them.

        Args:
            prompt: K indices, -1 for a prompt that is not in the list; its fields are None.
        """
        return {name: [values[i] if i >= 0 else None for i in prompt] for name, values in self.columns.items()}


def load_prompts(
    source: PromptSource,
    tokenizer: Tokenizer,
    width: int | None = None,
    *,
    special_tokens_in_prompts: bool = False,
    chat_template_kwargs: Mapping[str, object] | None = None,
) -> Prompts:
    """Reads and tokenizes prompts.

    Args:
        source: one row per prompt, in a list, a generator or another iterable, a `datasets.Dataset`, or a data frame;
            or columns, a mapping such as `{"prompt": [...], "answer": [...]}`; or the path of a `.txt`, `.jsonl`,
            `.ndjson`, `.json`, `.csv` or `.parquet` file (see `textenv.data.prompt_files`). A row is a text; or a
            conversation, `[{"role": ..., "content": ...}]`; or a mapping with one of them as "prompt" (or, without a
            "prompt", as "messages"), whose other fields become columns. All rows are of one kind.
            A conversation is rendered by the tokenizer's chat template, up to the start of the assistant's turn. If its
            last message is the assistant's, the completion continues that message. A mapping in the field
            "chat_template_kwargs" holds further arguments of the template for that row.
        tokenizer: encodes each prompt, with the special tokens that it adds at the beginning, and not with those that
            it appends.
        width: W, the number of columns; by default the length of the longest prompt.
        special_tokens_in_prompts: whether the spelling of a special token in a prompt is that token, for prompts that a
            chat template has written. By default it is ordinary text, and a warning names the first such prompt.
        chat_template_kwargs: further arguments of the chat template, such as `enable_thinking`. The arguments that the
            tokenizer's `apply_chat_template` takes for itself are refused.

    Raises:
        ValueError: there are no prompts, one is empty or longer than `width`, or a row is malformed (the message
            names it: file and line, or its index); or an argument of the template is refused.
    """
    common = check_template_arguments(chat_template_kwargs, tokenizer)
    rows = [(where, *_split_row(where, row)) for where, row in read_rows(source)]
    if not rows:
        name = repr(str(source)) if isinstance(source, str | PathLike) else "the list"
        raise ValueError(f"There must be at least one prompt, got none from {name}.")
    _check_alike(rows)
    encoded = [
        encode_prompt(
            prompt,
            tokenizer,
            where,
            special_tokens_in_prompts,
            {**common, **_template_arguments(prompt, row, where)},
        )
        for where, prompt, row in rows
    ]
    fields = rows[0][2]
    columns = {name: [row[name] for _, _, row in rows] for name in fields if name != "prompt"}
    if "prompt" not in fields:
        columns.pop("messages", None)  # they are the prompts
    if typed := [(where, prompt.special) for prompt, (where, *_) in zip(encoded, rows, strict=True) if prompt.special]:
        warn_of_special_token(*typed[0])
    texts, ids = [prompt.text for prompt in encoded], [prompt.ids for prompt in encoded]
    width = max(map(len, ids)) if width is None else width
    return Prompts(texts, *_pad_left([row[0] for row in rows], texts, ids, width, tokenizer), columns)


def encode_prompt(
    prompt: str | list[Message],
    tokenizer: Tokenizer,
    where: str = "the prompt",
    special_tokens_in_prompts: bool = False,
    chat_template_kwargs: Mapping[str, object] | None = None,
) -> EncodedText:
    """Encodes one prompt, a text or a conversation; the last arguments are those of `load_prompts`.

    Raises:
        ValueError: it is empty, or the tokenizer refuses it; the message begins with `where`.
    """
    try:
        if isinstance(prompt, str):
            encoded = encode_beginning(prompt, tokenizer, read_special_tokens=special_tokens_in_prompts)
        else:
            template = check_template_arguments(chat_template_kwargs, tokenizer)
            encoded = encode_chat(
                prompt, tokenizer, complete=False, read_special_tokens=special_tokens_in_prompts, template=template
            )
            encoded = encoded._replace(text=ConversationText(encoded.text, prompt))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    except Exception as error:  # a tokenizer may raise anything, where it has no token for a word for one
        raise ValueError(
            f"{where}: the tokenizer cannot encode {shown(prompt)} ({type(error).__name__}: {error})"
        ) from error
    check_characters(encoded.text, where)
    if not encoded.text.strip() or not encoded.ids:
        raise ValueError(f"{where}: a prompt must have at least one token, got {encoded.text!r}; drop it.")
    return encoded


def check_template_arguments(given: object, tokenizer: Any = None) -> dict[str, object]:
    """Returns further arguments of a chat template; those that are None, as tables have them, are left out.

    Args:
        given: a mapping, or None.
        tokenizer: the arguments that its `apply_chat_template` takes for itself are refused too.

    Raises:
        ValueError: they are no mapping, a name is no string, or is taken by `apply_chat_template`.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"{TEMPLATE_FIELD} must be a mapping of the template's arguments, got {shown(given)}.")
    arguments = {name: value for name, value in given.items() if value is not None}
    kind: Any = type(tokenizer)
    refused = SET_HERE | _taken_arguments(kind)
    for name in arguments:
        if not isinstance(name, str):
            raise ValueError(f"{TEMPLATE_FIELD} must have strings as names, got {shown(name)} in {shown(arguments)}.")
        if name in refused:
            raise ValueError(
                f"{TEMPLATE_FIELD} must have names other than the arguments of apply_chat_template itself, got "
                f"{name!r} in {shown(arguments)}; leave it out."
            )
    return arguments


@cache
def _taken_arguments(kind: type) -> frozenset[str]:
    """The arguments that a tokenizer's `apply_chat_template` takes and does not pass on to the template."""
    if not hasattr(kind, "apply_chat_template"):
        return frozenset()
    parameters = inspect.signature(kind.apply_chat_template).parameters.values()
    return frozenset(each.name for each in parameters if each.kind is not each.VAR_KEYWORD) - PASSED_ON


def warn_of_special_token(where: str, special: str) -> None:
    """Warns that a prompt has the spelling of a special token."""
    warnings.warn(
        f"{printable(where)}: has the spelling of the special token {special!r}, which is read as ordinary text. For "
        "prompts that a chat template has written, pass special_tokens_in_prompts=True (--special-tokens-in-prompts).",
        stacklevel=4,
    )


def padding_id(tokenizer: Tokenizer) -> int:
    """Token id of padding columns: any valid id, because attention skips padding."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token_id, int) and 0 <= token_id < len(tokenizer):
            return token_id
    return 0


def _check_alike(rows: Sequence[tuple[str, object, Mapping[str, object]]]) -> None:
    """Raises a ValueError unless all rows (place, prompt, fields) have the same fields, and prompts of one kind."""
    first, first_prompt, fields = rows[0]
    for where, prompt, row in rows:
        if bool(row) != bool(fields):
            raise ValueError(
                f"{where}: prompts must be all mappings or none, got {_kind(prompt, row)} after "
                f"{_kind(first_prompt, fields)} ({first}); write each as a mapping, {{'prompt': ...}}, with the same "
                "fields."
            )
        if set(row) != set(fields):
            raise ValueError(
                f"{where}: must have the field 'prompt' and the first one's fields {list(fields)}, got {shown(row)}."
            )
        if isinstance(prompt, str) != isinstance(first_prompt, str):
            raise ValueError(
                f"{where}: prompts must be all texts or all conversations, got {_kind(prompt)} after "
                f'{_kind(first_prompt)} ({first}); write a text as [{{"role": "user", "content": text}}].'
            )


def _kind(prompt: object, fields: Mapping[str, object] | None = None) -> str:
    """What a row is, for a message."""
    return "a mapping" if fields else "a text" if isinstance(prompt, str) else "a conversation"


def _pad_left(
    places: Sequence[str], texts: Sequence[str], ids: Sequence[Sequence[int]], width: int, tokenizer: Tokenizer
) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Ids and attention mask, [P, width]; raises a ValueError where a prompt is too long, or an id is outside of V."""
    size = len(tokenizer)
    input_ids = np.full((len(ids), width), padding_id(tokenizer), dtype=np.int64)
    attention_mask = np.zeros((len(ids), width), dtype=np.int8)
    for index, (where, text, tokens) in enumerate(zip(places, texts, ids, strict=True)):
        if len(tokens) > width:
            raise ValueError(
                f"{where}: the prompt {text!r} has {len(tokens)} tokens, more than the {width} allowed; "
                "shorten it or raise max_prompt_length."
            )
        if min(tokens) < 0 or max(tokens) >= size:
            raise ValueError(
                f"{where}: the tokenizer must give ids in 0 .. {size - 1}, got {shown(list(tokens))}; where its ids "
                "have holes, it needs get_vocab()."
            )
        input_ids[index, width - len(tokens) :] = tokens
        attention_mask[index, width - len(tokens) :] = 1
    return input_ids, attention_mask


def _split_row(where: str, row: object) -> tuple[str | list[Message], dict[str, object]]:
    """The prompt of a row, a text or messages, and the row's fields: none where the row is the prompt itself."""
    fields = row if isinstance(row, Mapping) else {}
    name = next((name for name in PROMPT_FIELDS if name in fields), None)
    if isinstance(row, Mapping) and name is None:
        hint = "; a conversation must be in a list of its own" if {"role", "content"} <= set(row) else ""
        raise ValueError(
            f"{where}: a prompt must be a string, messages, or an object with the string field 'prompt', or "
            f"'messages', got {_shown_row(row)}{hint}."
        )
    for key in fields:
        if not isinstance(key, str) or key in RESERVED:
            rule = "is an argument of rewards" if isinstance(key, str) else "must be a string"
            raise ValueError(f"{where}: the name {key!r} {rule}; rename the field.")
    value = row if name is None else fields[name]
    try:
        prompt = messages_of(value) or (str(value) if isinstance(value, str) else read_messages(value))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if prompt is None:
        raise ValueError(
            f"{where}: a prompt must be a string, messages, or an object with the string field 'prompt', or "
            f"'messages', got {_shown_row(row)}."
        )
    return prompt, dict(fields)


def _shown_row(row: object) -> str:
    """A row as a JSON file has it, or its `repr` where it is no JSON."""
    try:
        return shown(json.dumps(row, ensure_ascii=False))
    except (TypeError, ValueError):
        return shown(row)


def _template_arguments(prompt: object, row: Mapping[str, object], where: str) -> dict[str, object]:
    """The template's arguments of a row; for texts, the field has no meaning."""
    try:
        return {} if isinstance(prompt, str) else check_template_arguments(row.get(TEMPLATE_FIELD))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
