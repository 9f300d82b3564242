"""Prediction: the next token of observations, greedy or sampled, among the allowed tokens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from agents.errors import Diverged
from agents.policy import TransformerPolicy
from textenv import TextMDP
from textenv.lm import max_length


@torch.no_grad()
def predict_tokens(
    policy: TransformerPolicy,
    mdp: TextMDP | None,
    observation: Mapping[str, ArrayLike],
    action_masks: object,
    generator: torch.Generator | None,
) -> NDArray[np.int64] | np.int64:
    """Returns the next tokens of one observation (arrays [L]; a scalar) or of a batch ([B, L]; an array [B]).

    Args:
        policy: pi.
        mdp: its reference masks tokens where neither `action_masks` nor the observation's `action_mask` does.
        observation: `input_ids`, `attention_mask`, and perhaps `action_mask`.
        action_masks: the allowed tokens, bool [V] or [B, V], or None.
        generator: samples from pi; None takes the most likely tokens.

    Raises:
        ValueError: no sequences that the policy can take, or no mask of theirs that allows a token in each row.
        Diverged: pi is not finite.
    """
    ids, attention = _sequences(observation, policy)
    masks = observation.get("action_mask") if action_masks is None else action_masks
    allowed: NDArray[np.bool_] | None = None
    if masks is not None:
        allowed = _allowed(masks, (len(ids), policy.vocab_size))
    elif mdp is not None and not mdp.full_support:
        allowed = mdp.reference.log_probs(ids, attention) > -np.inf
        allowed |= ~allowed.any(axis=1, keepdims=True)  # the episode has ended: allow any token
    logits = policy.next_token_logits(ids, attention)
    if not bool((logits < torch.inf).all()):
        raise Diverged("The policy's probabilities are not finite: it has diverged. Load an earlier checkpoint.")
    if allowed is not None:
        logits = logits.masked_fill(~torch.as_tensor(allowed, device=policy.device), -torch.inf)
    if generator is None:
        actions = logits.argmax(dim=-1)
    else:
        actions = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(1)
    tokens = actions.cpu().numpy()
    return tokens if np.ndim(observation["input_ids"]) == 2 else tokens[0]


def _sequences(observation: object, policy: TransformerPolicy) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Checks `input_ids` and `attention_mask` and returns them as [B, L]."""
    names = ("input_ids", "attention_mask")
    if not isinstance(observation, Mapping) or not all(name in observation for name in names):
        keys = sorted(map(str, observation)) if isinstance(observation, Mapping) else type(observation).__name__
        raise ValueError(f"An observation must be a dict with input_ids and attention_mask, got {keys}.")
    ids, attention = (_integers(observation[name], name) for name in names)
    if ids.shape != attention.shape or ids.ndim not in (1, 2) or ids.size == 0:
        raise ValueError(
            "input_ids and attention_mask must be of the same shape, [L] or [B, L], and not empty, got "
            f"{ids.shape} and {attention.shape}."
        )
    ids, attention = np.atleast_2d(ids), np.atleast_2d(attention)
    config = policy.model.config.get_text_config()
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        bad = ids[(ids < 0) | (ids >= config.vocab_size)][0]
        raise ValueError(f"input_ids must be in 0 .. {config.vocab_size - 1}, the policy's ids, got {bad}.")
    lengths = attention.sum(axis=1)
    if not np.isin(attention, (0, 1)).all() or lengths.min() == 0:
        raise ValueError("attention_mask must be 1 on a row's tokens, at least one, and 0 elsewhere, got another.")
    context = max_length(policy.model)
    if context is not None and lengths.max() > context:
        raise ValueError(f"A sequence must fit the policy's context of {context} tokens, got {lengths.max()}.")
    return ids, attention


def _integers(values: object, name: str) -> NDArray[np.int64]:
    """The values as integers, with their own message where they are none."""
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different lengths
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be an array of integers, got {type(values).__name__} of {array.dtype}.")
    return array.astype(np.int64)


def _allowed(masks: object, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Checks action masks, [V] or [B, V], and returns them as bool [B, V]."""
    try:
        array = np.asarray(masks)
    except ValueError:  # rows of different lengths
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "biuf" or array.shape not in (shape, shape[1:]) or not np.isin(array, (0, 1)).all():
        raise ValueError(
            f"Action masks must be 0 or 1 (or bool), of shape {shape[1:]} or {shape}, got {array.dtype}{array.shape}."
        )
    allowed: NDArray[np.bool_] = np.broadcast_to(array.astype(np.bool_), shape).copy()
    if not allowed.any(axis=1).all():
        row = int(np.flatnonzero(~allowed.any(axis=1))[0])
        raise ValueError(f"Action masks must allow a token in each row, got none in row {row}: its episode has ended?")
    return allowed
