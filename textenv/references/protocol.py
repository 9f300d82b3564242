"""The interface of a reference policy pi_ref(a | s).

    log_probs(input_ids [B, L], attention_mask [B, L]) -> float [B, V]

returns the log-probabilities of the next token of each row. Padding (attention 0) may be on either side of a row's
tokens.
"""

from __future__ import annotations

from typing import Protocol

from textenv.state import Array


class Reference(Protocol):
    """What the environment requires of a reference.

    Optional attributes: `vocab_size` (checked against the tokenizer's), `full_support` (True: no token ever has
    probability 0, so masks can be skipped), `eos_token_id`, `max_length` (the context length), and
    `token_log_probs(input_ids, attention_mask, num_tokens) -> [B, T]`, which scores whole completions in one pass.
    """

    def log_probs(self, input_ids: Array, attention_mask: Array) -> Array: ...
