"""Losses: pure functions of [B, T] tensors and a mask.

Each loss is a mean *per completion*: sums over a completion's tokens, divided by the number of completions B. So the
gradient of a policy loss estimates the gradient of J itself, whatever the lengths in the batch. (A mean over all tokens
divides by the batch's total length, which depends on the samples: its gradient is biased towards short completions.)
A row whose mask is all False is a completion that is skipped: it does not count. Every loss raises a ValueError where
an argument has not the mask's shape: advantages [B] would broadcast.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.functional.importance import Level, importance_log_ratio
from agents.functional.returns import check_shapes


def mean_over_completions(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of `x` over the True entries of `mask` [B, T], divided by the number of rows that have one; 0 if none has."""
    check_shapes(mask, x=x)
    return torch.where(mask, x, 0.0).sum() / mask.any(dim=1).sum().clamp(min=1)


def clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, clip_range: float | None, clip_range_high: float | None = None
) -> Tensor:
    """min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps_high) A_t) of each token, [B, T], from log rho_t and A_t."""
    ratio = log_ratio.exp()
    surrogate = ratio * advantages
    if clip_range is None:
        return surrogate
    high = clip_range if clip_range_high is None else clip_range_high
    return torch.minimum(surrogate, ratio.clamp(1.0 - clip_range, 1.0 + high) * advantages)


def clipped_surrogate_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_range: float | None,
    clip_range_high: float | None = None,
    importance: Level = "token",
) -> Tensor:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, eq. 7).

        rho_t = pi(a_t|s_t) / pi_old(a_t|s_t)
        loss  = - sum_t min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps_high) A_t)

    Args:
        log_probs: log pi(a_t|s_t), with gradient, [B, T].
        old_log_probs: log pi_old(a_t|s_t) of the behaviour policy, [B, T].
        advantages: A_t, [B, T]; detached.
        mask: bool [B, T].
        clip_range: eps; None is the importance-weighted loss without a clip, - sum_t rho_t A_t.
        clip_range_high: eps_high; None is eps.
        importance: what rho_t is the product over, see `importance_log_ratio`.
    """
    check_shapes(mask, advantages=advantages)
    log_ratio = importance_log_ratio(log_probs, old_log_probs, mask, importance)
    surrogate = clipped_surrogate(log_ratio, advantages.detach(), clip_range, clip_range_high)
    return -mean_over_completions(surrogate, mask)


def value_loss(
    values: Tensor, returns: Tensor, mask: Tensor, old_values: Tensor | None = None, clip_range: float | None = None
) -> Tensor:
    """1/2 sum_t (V(s_t) - G_t)^2 per completion: in expectation the true V minimises it.

    Args:
        values: V(s_t), with gradient, [B, T].
        returns: G_t, [B, T]; detached.
        mask: bool [B, T].
        old_values: V(s_t) when the batch was collected, [B, T]; required with `clip_range`.
        clip_range: the larger of the errors of V and of V clipped to this distance from `old_values` (OpenAI's PPO);
            None is the plain squared error.
    """
    check_shapes(mask, values=values, returns=returns)
    returns = returns.detach()
    error = (values - returns) ** 2
    if clip_range is not None:
        if old_values is None:
            raise ValueError("value_loss needs old_values where clip_range is set, got None; pass rollout.values.")
        check_shapes(mask, old_values=old_values)
        clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
        error = torch.maximum(error, (clipped - returns) ** 2)
    return 0.5 * mean_over_completions(error, mask)
