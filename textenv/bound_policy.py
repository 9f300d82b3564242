"""Calls of a bound policy: logits and log-probabilities of the next token, as numpy arrays."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
from numpy.typing import NDArray

from textenv.arguments import array_type, shown, takes_arguments
from textenv.categorical import masked_log_softmax
from textenv.state import Array, Selection

PolicyFunction = Callable[[Array, Array], object]


def check_policy(policy: object) -> None:
    """Checks a policy before it is bound; None is no policy.

    Raises:
        TypeError: it cannot be called with numpy arrays and return logits.
    """
    if policy is None or callable(getattr(policy, "next_token_logits", None)):
        return
    if not takes_arguments(policy, 2):
        raise TypeError(
            f"A policy must be a function (input_ids, attention_mask) -> logits [B, V], got {shown(policy)}."
        )
    if hasattr(policy, "get_input_embeddings"):  # a language model of transformers
        raise TypeError(
            f"A policy must be a function (input_ids, attention_mask) -> logits [B, V], got {type(policy).__name__}, "
            "which takes tensors and returns more than logits; wrap it in agents.policy.TransformerPolicy."
        )


def action_log_probs(
    policy: PolicyFunction, input_ids: Array, attention_mask: Array, actions: Array, allowed: Array, live: Array
) -> NDArray[np.float64]:
    """log pi(a_t | s_t), [B], of a bound policy: its logits, normalized over the tokens that `allowed` [B, V] has.

    Zero in rows that are not `live` [B], whatever the policy returns there.

    Raises:
        ValueError: the policy returns no logits, or gives an action probability zero: its reward would be infinite.
    """
    logits = policy_logits(policy, input_ids, attention_mask, allowed.shape[1], live)
    rows = np.flatnonzero(live)
    log_probs = np.zeros(len(live))
    with np.errstate(invalid="ignore", over="ignore"):  # what comes of it is checked below
        log_probs[rows] = masked_log_softmax(logits[rows], allowed[rows])[np.arange(len(rows)), actions[rows]]
    if not np.isfinite(log_probs).all():
        row = int(np.flatnonzero(~np.isfinite(log_probs))[0])
        raise ValueError(
            "A bound policy must give the token that is taken a positive probability, because the reward has "
            f"-beta log pi of it, got log pi = {log_probs[row]} for token {actions[row]} in row {row}; sample tokens "
            "from the policy that is bound, or bind None."
        )
    return log_probs


def policy_logits(
    policy: PolicyFunction,
    input_ids: Array,
    attention_mask: Array,
    vocab_size: int,
    rows: Selection = slice(None),
) -> NDArray[np.float64]:
    """`policy(input_ids, attention_mask)` as float64 [B, V], whether it returns a numpy array or a torch tensor.

    Raises:
        ValueError: the policy returns another shape or dtype; or, in `rows`, a NaN or +inf, or -inf for every token.
    """
    call = getattr(policy, "next_token_logits", policy)
    torch = sys.modules.get("torch")  # None if nothing has imported torch: then the policy does not use it
    try:
        with torch.no_grad() if torch else nullcontext():
            output = call(input_ids, attention_mask)
    except Exception as error:
        error.add_note(
            "Raised by the bound policy, which is called with numpy arrays input_ids, attention_mask [B, L]."
        )
        raise
    if hasattr(output, "detach"):
        output = output.detach()
        output = output.cpu()  # first: not every device has float64
        output = (output.double() if output.is_floating_point() else output).numpy()
    shape = (len(input_ids), vocab_size)
    if array_type(output) == "" or np.asarray(output).dtype.kind not in "fiu":
        raise ValueError(f"A policy must return logits of shape [B, V] = {shape}, got {shown(output)}.")
    logits = np.asarray(output, dtype=np.float64)
    if logits.shape != shape:
        raise ValueError(f"A policy must return logits of shape [B, V] = {shape}, got {logits.shape}.")
    largest = logits[rows].max(axis=1)
    if not np.isfinite(largest).all():  # a NaN is the maximum of its row
        bad = largest[~np.isfinite(largest)][0]
        what = "-inf for every token" if bad == -np.inf else bad
        raise ValueError(f"A policy's logits must be numbers, or -inf for some of the tokens, got {what}.")
    return logits
