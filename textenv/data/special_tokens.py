"""Text as tokens: the spelling of a special token in a text is ordinary text; only a chat template writes the token.

Otherwise "</s>" typed by a user would end a sequence for the model, and "<|im_start|>" would begin a turn of a chat.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from textenv.arguments import check_text, shown
from textenv.data.conversations import continues_last_message


class EncodedText(NamedTuple):
    """Token ids of a text, and a special token whose spelling is in what the user wrote; None if there is none."""

    text: str
    ids: list[int]
    special: str | None


def encode_text(
    text: str,
    tokenizer: Any,
    *,
    add_special_tokens: bool = True,
    max_length: int | None = None,
    read_special_tokens: bool = False,
) -> EncodedText:
    """Encodes a text; a special token's spelling in it is ordinary text.

    Args:
        text: the text.
        tokenizer: a Hugging Face tokenizer. Any other is called as it is: it has no special tokens in its input.
        add_special_tokens: whether the tokenizer adds its own, such as BOS.
        max_length: a longer text is truncated on the tokenizer's `truncation_side`.
        read_special_tokens: whether such a spelling is the token instead.

    Raises:
        ValueError: the tokenizer has no ordinary tokens for that spelling.
    """
    arguments: dict[str, object] = {"add_special_tokens": add_special_tokens}
    if max_length is not None:
        arguments |= {"truncation": True, "max_length": max_length}
    check_text(text)
    special = None if read_special_tokens else find_special_token(text, tokenizer)
    if special is None:
        return EncodedText(text, tokenizer.encode(text, **arguments), None)
    ids = _encode_ordinary(text, tokenizer, add_special_tokens=False)
    if _find(ids, tokenizer) is None:
        return EncodedText(text, _encode_ordinary(text, tokenizer, **arguments), special)
    around = _encode_ordinary(text, tokenizer, add_special_tokens=add_special_tokens)
    before, after = split_around(around, ids)
    ids = _as_unknown_words(ids, tokenizer)
    if max_length is not None and (excess := len(before + ids + after) - max_length) > 0:
        ids = ids[:-excess] if tokenizer.truncation_side == "right" else ids[excess:]
    return EncodedText(text, before + ids + after, special)


def encode_beginning(text: str, tokenizer: Any, *, read_special_tokens: bool = False) -> EncodedText:
    """Encodes a text that a completion continues: as `encode_text`, without what the tokenizer appends, such as EOS.

    Raises:
        ValueError: as in `encode_text`, or the tokenizer's own tokens cannot be told from those of the text.
    """
    encoded = encode_text(text, tokenizer, read_special_tokens=read_special_tokens)
    inner = list(encode_text(text, tokenizer, add_special_tokens=False, read_special_tokens=read_special_tokens).ids)
    before, _ = split_around(encoded.ids, inner)
    if read_special_tokens and inner[: len(before)] == before:  # a chat template has written BOS
        before = []
    return encoded._replace(ids=before + inner)


def split_around(ids: Sequence[int], inner: Sequence[int]) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer has added before and after those of a text.

    Raises:
        ValueError: the text's own ids are not among them.
    """
    whole, own = list(ids), list(inner)
    for start in range(len(whole) - len(own) + 1):
        if whole[start : start + len(own)] == own:
            return whole[:start], whole[start + len(own) :]
    raise ValueError(
        f"the tokenizer must encode a text to the same tokens with and without those that it adds, got {shown(whole)} "
        f"and {shown(own)}; what it adds could not be found"
    )


def encode_chat(
    messages: Any,
    tokenizer: Any,
    *,
    complete: bool = True,
    max_length: int | None = None,
    read_special_tokens: bool = False,
    template: Mapping[str, object] | None = None,
) -> EncodedText:
    """Encodes a conversation by the tokenizer's chat template: only the template writes special tokens.

    Args:
        messages: mappings with the strings `role` and `content`.
        tokenizer: a Hugging Face tokenizer with a chat template.
        complete: False: a completion will follow. Then the text ends where the assistant's turn begins or, if the last
            message is the assistant's, at the end of that message, which the completion continues.
        max_length: a longer conversation is truncated at its beginning.
        read_special_tokens: whether the spelling of a special token in a message is the token instead.
        template: further arguments of `apply_chat_template`, such as variables of the template.

    Raises:
        ValueError: the template refuses the messages, or changes one that has such a spelling; or see `encode_text`.
    """
    template = dict(template or {})
    if not complete:
        template["continue_final_message" if continues_last_message(messages) else "add_generation_prompt"] = True
    text = _render(messages, tokenizer, template)
    check_text(text)
    strings = () if read_special_tokens else _strings(messages)
    special = next(filter(None, (find_special_token(string, tokenizer) for string in strings)), None)
    if special is None:
        ids = tokenizer.encode(text, add_special_tokens=False)  # the template has added them
        return EncodedText(text, ids[-max_length:] if max_length else ids, None)
    spellings = [token.content for token in _special_tokens(tokenizer).values()]
    tokens = "|".join(map(re.escape, sorted(spellings, key=len, reverse=True)))
    marks: dict[str, str] = {}  # mark -> the spelling that it replaces while the template is rendered

    def mark(spelling: str) -> str:
        marks[name := f"\ue000{uuid.uuid4().hex}\ue001"] = spelling
        return name

    def marked(value: object) -> Any:
        if isinstance(value, Mapping):
            return {name: marked(inner) for name, inner in value.items()}
        if isinstance(value, str):
            new = re.sub(tokens, lambda found: mark(found[0]), value)
            # a normalizer can make a special token of another spelling: its text is marked as a whole
            return new if new != value or find_special_token(value, tokenizer) is None else new + mark("")
        return [marked(inner) for inner in value] if isinstance(value, Sequence) else value

    rendered = _render(marked(list(messages)), tokenizer, template)
    if _unmarked(rendered, marks) != text:
        raise ValueError(
            f"the chat template changes a message that has the spelling of the special token {special!r}; remove it "
            "from the message"
        )
    ids, template_text = [], ""
    for part in re.split(f"({tokens})", rendered):  # special tokens of the template, and what is between them
        if not any(name in part for name in marks):
            template_text += part
            continue
        ids += tokenizer.encode(template_text, add_special_tokens=False) if template_text else []
        ids += encode_text(_unmarked(part, marks), tokenizer, add_special_tokens=False).ids
        template_text = ""
    ids += tokenizer.encode(template_text, add_special_tokens=False) if template_text else []
    return EncodedText(text, ids[-max_length:] if max_length else ids, special)


def find_special_token(text: str, tokenizer: Any) -> str | None:
    """Returns a special token that the tokenizer reads in a text by default, or None."""
    tokens = _special_tokens(tokenizer)
    if found := [token.content for token in tokens.values() if token.content in text]:
        return str(max(found, key=len))
    if any(token.normalized for token in tokens.values()):  # such a token also matches other spellings, e.g. <EOS>
        return _find(tokenizer.encode(text, add_special_tokens=False), tokenizer)
    return None


def _find(ids: Iterable[int], tokenizer: Any) -> str | None:
    """Returns the first special token among ids, other than that of unknown words."""
    tokens, harmless = _special_tokens(tokenizer), _harmless(tokenizer)
    return next((str(tokens[i].content) for i in ids if i in tokens and i not in harmless), None)


def _special_tokens(tokenizer: Any) -> dict[int, Any]:
    """The special tokens of a Hugging Face tokenizer that it finds in texts, by id; none of any other tokenizer.

    One character is never one: where "!" or a line feed serves as padding or end token, texts still need it.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    named = set(tokenizer.all_special_tokens) if added else set()
    special = {i: token for i, token in added.items() if token.special or token.content in named}
    return {i: token for i, token in special.items() if len(token.content.strip()) > 1}


def _as_unknown_words(ids: list[int], tokenizer: Any) -> list[int]:
    """Replaces special tokens in the ids of ordinary text: the vocabulary holds the spelling as a whole word."""
    if not (harmless := _harmless(tokenizer)):
        raise ValueError(
            f"the tokenizer reads {_find(ids, tokenizer)!r} as its special token, even in ordinary text; remove it, or "
            "pass special_tokens_in_prompts=True (--special-tokens-in-prompts) if a chat template wrote it"
        )
    return [min(harmless) if _find([i], tokenizer) else i for i in ids]


def _harmless(tokenizer: Any) -> set[int]:
    """The id of unknown words, unless it also begins or ends a sequence, as in GPT-2."""
    unknown = tokenizer.unk_token_id
    return set() if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id) else {unknown}


def _encode_ordinary(text: str, tokenizer: Any, **arguments: object) -> list[int]:
    """Encodes a text without looking for special tokens, and leaves the tokenizer as it was."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    before = getattr(backend, "encode_special_tokens", None)
    try:
        ids: list[int] = tokenizer.encode(text, split_special_tokens=True, **arguments)
    finally:
        if backend is not None and before is not None:  # transformers sets it for good
            backend.encode_special_tokens = before
    return ids


def _render(messages: Any, tokenizer: Any, template: Mapping[str, object]) -> str:
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError("messages need a tokenizer with a chat template: set tokenizer.chat_template or pass strings.")
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **template))
    except Exception as error:  # a template may raise anything, jinja's own errors included
        raise ValueError(f"the chat template refuses {messages!r}: {error}") from error


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | Sequence):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(inner)


def _unmarked(text: str, marks: dict[str, str]) -> str:
    return re.sub("\ue000[0-9a-f]{32}\ue001", lambda found: marks.get(found[0], found[0]), text)
