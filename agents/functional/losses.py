"""Losses: pure functions of [B, T] tensors and a mask.

All of them are means *per answer*: sums over an answer's tokens, divided by the number of answers B. So the policy
losses' gradient is an estimate of the gradient of J itself, whatever the lengths in the batch. (A mean over all tokens
divides by the batch's total length, which depends on the samples: the gradient is then biased towards short answers.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.functional.kl import k3


def mean_over_completions(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of `x` over the True entries of `mask`, divided by the number of rows."""
    return torch.where(mask, x, 0.0).sum() / x.shape[0]


def policy_gradient_loss(log_probs: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """- sum_t log pi(a_t|s_t) w_t: its gradient is that of -J when w_t estimates Q(s_t, a_t), up to a baseline.

    The log-derivative trick, grad pi = pi grad log pi (Williams 1992; Sutton et al. 2000).

    Args:
        log_probs: log pi(a_t|s_t), with gradient, [B, T].
        weights: w_t: whole return, reward to go, Q or advantage, [B, T]; taken as constants.
        mask: bool [B, T].
    """
    return -mean_over_completions(log_probs * weights.detach(), mask)


def clipped_surrogate_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_range: float | None,
    clip_range_high: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, eq. 7).

        rho_t = pi(a_t|s_t) / pi_old(a_t|s_t)
        loss  = - sum_t min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps_high) A_t)

    Args:
        log_probs: log pi(a_t|s_t), with gradient, [B, T].
        old_log_probs: log pi_old(a_t|s_t) of the policy that sampled, [B, T].
        advantages: A_t, [B, T]; taken as constants.
        mask: bool [B, T].
        clip_range: eps; None is the importance-weighted loss without a clip, - sum_t rho_t A_t.
        clip_range_high: eps_high; None is eps.

    Returns:
        The loss, and what is worth watching, a token: `val/ratio`, the mean of rho; `val/ratio_error_max`, its largest
        distance from 1; `val/ess`, (sum rho)^2 / (n sum rho^2), the effective share of the sample (Kong 1992);
        `policy/approxkl_avg`, KL(pi_old || pi) by k3; `policy/clipfrac_avg`, where the clip binds; the same among the
        tokens with A > 0 (rho > 1 + eps_high), `policy/clipfrac_high_avg`, and among those with A < 0 (rho < 1 - eps),
        `policy/clipfrac_low_avg`; and how many tokens these are means of.
    """
    advantages = advantages.detach()
    log_ratio = torch.where(mask, log_probs - old_log_probs, 0.0)
    ratio = log_ratio.exp()
    surrogate = ratio * advantages
    binds = torch.zeros_like(mask)
    if clip_range is not None:
        above = clip_range if clip_range_high is None else clip_range_high
        clipped = ratio.clamp(1.0 - clip_range, 1.0 + above) * advantages
        binds = clipped < surrogate
        surrogate = torch.minimum(surrogate, clipped)
    tokens = mask.sum().clamp(min=1)
    with torch.no_grad():
        paid, high, low = torch.where(mask, ratio, 0.0), mask & (advantages > 0), mask & (advantages < 0)
        info = {
            "val/ratio": paid.sum() / tokens,
            "val/ess": paid.sum() ** 2 / (tokens * (paid**2).sum()).clamp(min=1e-30),
            "val/ratio_error_max": (ratio - 1.0).abs().max(),
            "policy/approxkl_avg": k3(-log_ratio).sum() / tokens,
            "policy/clipfrac_avg": (binds & mask).sum() / tokens,
            "policy/clipfrac_high_avg": (binds & high).sum() / high.sum().clamp(min=1),
            "policy/clipfrac_low_avg": (binds & low).sum() / low.sum().clamp(min=1),
            "num_tokens": mask.sum(),
            "num_high": high.sum(),
            "num_low": low.sum(),
        }
    return -mean_over_completions(surrogate, mask), info


def value_loss(
    values: Tensor, returns: Tensor, mask: Tensor, old_values: Tensor | None = None, clip_range: float | None = None
) -> Tensor:
    """1/2 sum_t (V(s_t) - G_t)^2: the mean squared error on the reward to go, whose minimum is the true V; per answer.

    Args:
        values: V(s_t), with gradient, [B, T].
        returns: G_t, [B, T]; taken as constants.
        mask: bool [B, T].
        old_values: V(s_t) when the batch was collected; needed with `clip_range`.
        clip_range: keep V within this distance of `old_values`, pessimistically (OpenAI's PPO); None is the plain MSE.
    """
    returns = returns.detach()
    error = (values - returns) ** 2
    if clip_range is not None:
        if old_values is None:
            raise ValueError("value_loss needs old_values to clip against.")
        near = old_values + (values - old_values).clamp(-clip_range, clip_range)
        error = torch.maximum(error, (near - returns) ** 2)
    return 0.5 * mean_over_completions(error, mask)
