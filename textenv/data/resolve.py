"""The prompts and token ids that users pass to `reset`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.data.prompts import Prompts, encode_prompt, is_conversation
from textenv.data.tokenizers import Tokenizer


def resolve_prompt(prompt: Any, prompts: Prompts, tokenizer: Tokenizer) -> tuple[int, str, NDArray[np.int64]]:
    """Index, text and ids of a prompt given as an index, text, messages or ids; index -1 if it is not in the list.

    Raises:
        ValueError: the index is out of range, or the prompt is empty or too long.
    """
    if isinstance(prompt, int | np.integer):
        if not 0 <= prompt < len(prompts.texts):
            raise ValueError(f"A prompt's index must be in 0 .. {len(prompts.texts) - 1}, got {prompt}.")
        return _listed(int(prompt), prompts)
    if isinstance(prompt, str) and prompt in prompts.texts:
        return _listed(prompts.texts.index(prompt), prompts)
    if isinstance(prompt, str) or is_conversation(prompt):
        prompt, tokens = encode_prompt(prompt, tokenizer)
    else:
        tokens = prompt
    ids = validate_token_ids(tokens, len(tokenizer))
    width = prompts.input_ids.shape[1]
    if not 0 < len(ids) <= width:
        raise ValueError(
            f"A prompt must have 1 to {width} tokens here, got {len(ids)} in {prompt!r}; "
            "make the environment with a larger max_prompt_length for longer ones."
        )
    same = (prompts.attention_mask.sum(axis=1) == len(ids)) & (prompts.input_ids[:, width - len(ids) :] == ids).all(
        axis=1
    )
    if same.any():
        return _listed(int(np.argmax(same)), prompts)
    text = prompt if isinstance(prompt, str) else str(tokenizer.decode(ids, skip_special_tokens=True))
    return -1, text, ids


def _listed(index: int, prompts: Prompts) -> tuple[int, str, NDArray[np.int64]]:
    return index, prompts.texts[index], prompts.input_ids[index][prompts.attention_mask[index] == 1]


def validate_token_ids(ids: Any, vocab_size: int) -> NDArray[np.int64]:
    """Returns `ids` as int64 [T].

    Raises:
        ValueError: `ids` is not a flat list of integers in 0 .. V-1.
    """
    tokens = np.asarray(ids)
    if tokens.size == 0:
        return np.zeros(0, dtype=np.int64)
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"Expected text or a list of token ids, got {ids!r}.")
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise ValueError(f"Token ids must be in 0 .. {vocab_size - 1}, got {ids!r}.")
    return tokens.astype(np.int64)
