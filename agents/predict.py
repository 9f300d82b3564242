"""Prediction: the next token of observations, greedy or sampled, among the allowed tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.policy import TransformerPolicy
from textenv import TextMDP


@torch.no_grad()
def predict_tokens(
    policy: TransformerPolicy,
    mdp: TextMDP | None,
    observation: dict[str, Any],
    action_masks: Any,
    generator: torch.Generator | None,
) -> Any:
    """Returns the next tokens of one observation (arrays [L]; a scalar) or of a batch ([B, L]; an array [B]).

    Args:
        policy: pi.
        mdp: its reference masks tokens where neither `action_masks` nor the observation's `action_mask` does.
        observation: `input_ids`, `attention_mask`, and perhaps `action_mask`.
        action_masks: the allowed tokens, bool [V] or [B, V], or None.
        generator: samples from pi; None takes the most likely tokens.
    """
    input_ids = np.asarray(observation["input_ids"])
    ids, attention = np.atleast_2d(input_ids), np.atleast_2d(np.asarray(observation["attention_mask"]))
    allowed: Tensor | None = None
    action_masks = observation.get("action_mask") if action_masks is None else action_masks
    if action_masks is not None:
        allowed = torch.as_tensor(np.atleast_2d(action_masks), dtype=torch.bool, device=policy.device)
    elif mdp is not None and not mdp.full_support:
        allowed = torch.as_tensor(mdp.reference.log_probs(ids, attention) > -np.inf, device=policy.device)
        allowed |= ~allowed.any(dim=1, keepdim=True)  # the episode has ended: allow any token
    logits = policy.next_token_logits(ids, attention)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    if generator is None:
        actions = logits.argmax(dim=-1)
    else:
        actions = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(1)
    tokens = actions.cpu().numpy()
    return tokens if input_ids.ndim == 2 else tokens[0]
