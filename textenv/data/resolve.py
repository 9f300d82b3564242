"""The prompts and token ids that users pass to `reset`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.arguments import integer_array, shown
from textenv.data.conversations import messages_of, read_messages
from textenv.data.prompts import Prompts, encode_prompt, warn_of_special_token
from textenv.data.tokenizers import Tokenizer


def resolve_prompt(
    prompt: Any,
    prompts: Prompts,
    tokenizer: Tokenizer,
    special_tokens_in_prompts: bool = False,
    chat_template_kwargs: Mapping[str, object] | None = None,
) -> tuple[int, str, NDArray[np.int64]]:
    """Index, text and ids of a prompt given as an index, text, messages or ids; index -1 if it is not in the list.

    The last arguments are those of `load_prompts`.

    Raises:
        ValueError: the index is out of range, or the prompt is empty or too long.
    """
    if isinstance(prompt, int | np.integer) and not isinstance(prompt, bool):
        if not 0 <= prompt < len(prompts.texts):
            raise ValueError(f"A prompt's index must be in 0 .. {len(prompts.texts) - 1}, got {prompt}.")
        return _listed(int(prompt), prompts)
    messages = messages_of(prompt) if isinstance(prompt, str) else read_messages(prompt)
    if messages is not None:  # a conversation is the same as another if its messages are
        known = next((i for i, text in enumerate(prompts.texts) if messages_of(text) == messages), None)
    else:
        known = prompts.texts.index(prompt) if isinstance(prompt, str) and prompt in prompts.texts else None
    if known is not None:
        return _listed(known, prompts)
    text: str | None = None
    tokens = prompt
    if messages is not None or isinstance(prompt, str):
        text, tokens, special = encode_prompt(
            prompt if messages is None else messages,
            tokenizer,
            special_tokens_in_prompts=special_tokens_in_prompts,
            chat_template_kwargs=chat_template_kwargs,
        )
        if special is not None:
            warn_of_special_token("the prompt", special)
    ids = validate_token_ids(tokens, len(tokenizer))
    width = prompts.input_ids.shape[1]
    if not 0 < len(ids) <= width:
        raise ValueError(
            f"A prompt must have 1 to {width} tokens here, got {len(ids)} in {shown(prompt)}; "
            "make the environment with a larger max_prompt_length for longer ones."
        )
    same = (prompts.attention_mask.sum(axis=1) == len(ids)) & (prompts.input_ids[:, width - len(ids) :] == ids).all(
        axis=1
    )
    if messages is None and same.any():
        return _listed(int(np.argmax(same)), prompts)
    return -1, str(tokenizer.decode(ids, skip_special_tokens=True)) if text is None else text, ids


def _listed(index: int, prompts: Prompts) -> tuple[int, str, NDArray[np.int64]]:
    return index, prompts.texts[index], prompts.input_ids[index][prompts.attention_mask[index] == 1]


def validate_token_ids(ids: object, vocab_size: int) -> NDArray[np.int64]:
    """Returns `ids` as int64 [T].

    Raises:
        ValueError: `ids` is not a flat list of integers in 0 .. V-1.
    """
    tokens = integer_array(ids)
    if tokens is None or tokens.ndim != 1:
        raise ValueError(f"Expected text or a list of token ids, got {shown(ids)}.")
    if ((tokens < 0) | (tokens >= vocab_size)).any():
        raise ValueError(f"Token ids must be in 0 .. {vocab_size - 1}, got {shown(ids)}.")
    return tokens.astype(np.int64)
