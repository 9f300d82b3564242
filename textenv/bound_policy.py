"""Calls of a bound policy: logits and log-probabilities of the next token, as numpy arrays."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.categorical import masked_log_softmax
from textenv.state import Array

PolicyFunction = Callable[[Any, Any], Any]


def action_log_probs(
    policy: PolicyFunction, input_ids: Array, attention_mask: Array, actions: Array, mask: Array
) -> Array:
    """log pi(a_t | s_t), [B], of a bound policy: its logits, normalized over the tokens that `mask` [B, V] allows."""
    logits = policy_logits(policy, input_ids, attention_mask, mask.shape[1])
    return np.asarray(masked_log_softmax(logits, mask)[np.arange(len(actions)), actions])


def policy_logits(
    policy: PolicyFunction, input_ids: Array, attention_mask: Array, vocab_size: int
) -> NDArray[np.float64]:
    """`policy(input_ids, attention_mask)` as float64 [B, V], whether it returns a numpy array or a torch tensor.

    Raises:
        ValueError: the policy returns another shape, or a NaN.
    """
    call = getattr(policy, "next_token_logits", policy)
    torch = sys.modules.get("torch")  # None if nothing has imported torch: then the policy does not use it
    with torch.no_grad() if torch else nullcontext():
        output = call(input_ids, attention_mask)
    if hasattr(output, "detach"):
        output = output.detach().double().cpu().numpy()
    logits = np.asarray(output, dtype=np.float64)
    if logits.shape != (len(input_ids), vocab_size):
        raise ValueError(
            f"A policy must return logits of shape [B, V] = {(len(input_ids), vocab_size)}, got {logits.shape}."
        )
    if np.isnan(logits).any():
        raise ValueError("A policy's logits must be numbers, got nan.")
    return logits
