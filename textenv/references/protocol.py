"""The interface of a reference policy."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]


class Reference(Protocol):
    """What the environment asks of a reference.

    It may also have `vocab_size` (checked against the tokenizer's), `full_support` (True: no token ever has probability
    0, so that masks need not be looked at), `eos_token_id`, `max_length` (its context), and
    `token_log_probs(input_ids, attention_mask, num_tokens) -> [B, T]`, which scores whole answers in one pass.
    """

    def log_probs(self, input_ids: NDArray[Any], attention_mask: NDArray[Any]) -> NDArray[Any]: ...
