"""What a policy computes of given completions in one pass: log pi of their tokens, V, and log pi of all tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from textenv.lm import forward_completions


class ActionEvaluation(NamedTuple):
    """log pi(a_t|s_t) and V(s_t) of B completions, [B, T] each."""

    log_probs: Tensor
    values: Tensor | None  # None if they were not requested


class FullEvaluation(NamedTuple):
    """`ActionEvaluation`, and log pi(.|s_t) of all tokens, [B, T, V]."""

    log_probs: Tensor
    values: Tensor | None
    all_log_probs: Tensor


def evaluate_all_actions(
    policy: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    num_tokens: int,
    action_mask: Tensor | None = None,
    values: bool = True,
    prefix: NDArray[np.int64] | None = None,
) -> FullEvaluation:
    """Computes what `TransformerPolicy.evaluate_actions` does, and log pi of all tokens, for sequences [B, L]."""
    inputs, shared = (input_ids, attention_mask, num_tokens), values and policy.critic is None
    output = forward_completions(policy.model, *inputs, policy.share(prefix), output_hidden_states=shared)
    all_log_probs = policy.log_softmax(output.logits, action_mask)
    log_probs = all_log_probs.gather(2, input_ids[:, -num_tokens:, None]).squeeze(2)
    if shared:
        known = policy.values_from_hidden(output.hidden_states[-1], num_tokens)
    else:
        known = policy.values(*inputs, prefix) if values else None
    return FullEvaluation(log_probs, known, all_log_probs)
