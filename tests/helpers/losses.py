"""Losses for `verify`, right and wrong, and the smallest toy to measure them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from agents.functional import leave_one_out, policy_gradient_loss, reward_to_go
from agents.sampling import Rollout


def small(**arguments: Any) -> Any:
    """Three tokens, of which one ends the completion, two steps, two prompts: 14 completions."""
    settings = {"vocab_size": 3, "max_new_tokens": 2, "num_prompts": 2, "kl_coef": 0.2}
    return gym.make("textenv/Toy-v0", **(settings | arguments))


def returns(rollout: Rollout) -> Tensor:
    """G_0 of each completion, [B]."""
    return rollout.rewards.sum(dim=1)


def weighted(log_probs: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """Minus the mean over completions of the weighted sum over their tokens."""
    return -(weights * log_probs * mask).sum() / len(mask)


def to_go(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """REINFORCE without a baseline."""
    return policy_gradient_loss(log_probs, reward_to_go(rollout.rewards, rollout.mask), rollout.mask)


def relative(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """RLOO in groups of 2."""
    advantages = returns(rollout) - leave_one_out(returns(rollout), 2, rollout.valid)
    return weighted(log_probs, advantages[:, None], rollout.mask)


def centred(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """The mean return of the batch as the baseline: it contains the completion itself."""
    return weighted(log_probs, (returns(rollout) - returns(rollout).mean())[:, None], rollout.mask)


def roll(x: Tensor) -> Tensor:
    """Each column one to the right."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)


def shortened(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """The last token, which is mostly EOS, is left out of the loss."""
    mask = rollout.mask & torch.cat([rollout.mask[:, 1:], torch.zeros_like(rollout.mask[:, :1])], dim=1)
    return weighted(log_probs, (returns(rollout) - leave_one_out(returns(rollout), 2, rollout.valid))[:, None], mask)


def whitened_over_padding(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """Rewards to go, centred by the mean over all columns of the batch."""
    weights = reward_to_go(rollout.rewards, rollout.mask)
    return weighted(log_probs, (weights - weights.mean()) / (weights.std() + 1e-8), rollout.mask)


def reversed_ratio(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """k3 of the reversed log-ratio, in the loss; the rewards without their KL."""
    scores = rollout.scores - rollout.scores.view(-1, 2).flip(1).flatten()
    log_ratio = log_probs - rollout.ref_log_probs
    penalty = ((log_ratio.exp() - 1 - log_ratio) * rollout.mask).sum() / len(log_probs)
    return weighted(log_probs, scores[:, None], rollout.mask) + 0.2 * penalty


FAULTS: dict[str, Callable[..., Tensor]] = {
    "a score one column late": lambda rollout, log_probs: weighted(
        log_probs, reward_to_go(roll(rollout.rewards), rollout.mask), rollout.mask
    ),
    "mean over tokens": lambda rollout, log_probs: relative(rollout, log_probs) * 2 / rollout.mask.sum(),
    "the log-ratio reversed": reversed_ratio,
    "whitened over padding": whitened_over_padding,
    "without the last token": shortened,
    "another temperature": lambda rollout, log_probs: weighted(
        (log_probs - 1.5 * rollout.log_probs).exp(), returns(rollout)[:, None], rollout.mask
    ),
    "rewards that come before": lambda rollout, log_probs: weighted(
        log_probs, rollout.rewards.cumsum(dim=1), rollout.mask
    ),
}
