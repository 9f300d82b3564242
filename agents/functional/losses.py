"""Losses: pure functions of [B, T] tensors and a mask.

Each loss is a mean *per completion*: sums over a completion's tokens, divided by the number of completions B. So the
gradient of a policy loss estimates the gradient of J itself, whatever the lengths in the batch. (A mean over all tokens
divides by the batch's total length, which depends on the samples: its gradient is biased towards short completions.)
A row whose mask is all False is a completion that is skipped: it does not count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.functional.kl import k3


def mean_over_completions(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of `x` over the True entries of `mask`, divided by the number of rows that have one; 0 where none has."""
    return torch.where(mask, x, 0.0).sum() / mask.any(dim=1).sum().clamp(min=1)


def policy_gradient_loss(log_probs: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """- sum_t log pi(a_t|s_t) w_t: its gradient estimates that of -J if w_t estimates Q(s_t, a_t), up to a baseline.

    The log-derivative trick, grad pi = pi grad log pi (Williams 1992; Sutton et al. 2000).

    Args:
        log_probs: log pi(a_t|s_t), with gradient, [B, T].
        weights: w_t: whole return, reward to go, Q or advantage, [B, T]; detached.
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
        old_log_probs: log pi_old(a_t|s_t) of the behaviour policy, [B, T].
        advantages: A_t, [B, T]; detached.
        mask: bool [B, T].
        clip_range: eps; None is the importance-weighted loss without a clip, - sum_t rho_t A_t.
        clip_range_high: eps_high; None is eps.

    Returns:
        The loss, and metrics over the n real tokens:
        `val/ratio`, the mean of rho;
        `val/ratio_error_max`, the largest distance of rho from 1;
        `val/ess`, (sum rho)^2 / (n sum rho^2), the effective sample size as a share of n (Kong 1992);
        `policy/approxkl_avg`, KL(pi_old || pi) per token, by k3;
        `policy/clipfrac_avg`, the share of tokens where the clip binds;
        `policy/clipfrac_high_avg`, that share among tokens with A > 0 (rho > 1 + eps_high);
        `policy/clipfrac_low_avg`, that share among tokens with A < 0 (rho < 1 - eps);
        `num_tokens`, `num_high`, `num_low`, the numbers of tokens that these are means over.
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
        rho, high, low = torch.where(mask, ratio, 0.0), mask & (advantages > 0), mask & (advantages < 0)
        weights = rho / rho.amax().clamp(min=1e-30)  # their squares are finite, however large rho is
        info = {
            "val/ratio": rho.sum() / tokens,
            "val/ess": weights.sum() ** 2 / (tokens * (weights**2).sum()).clamp(min=1e-30),
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


@torch.no_grad()
def first_ratio_error(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Returns `val/first_ratio_error_avg`, the mean of |rho_t - 1| over the real tokens, and their number.

    Before the first step pi is the behaviour policy, so the metric of the first minibatch is 0 up to rounding, unless
    the sampler's log-probabilities are not those of the policy. Arguments are those of `clipped_surrogate_loss`.
    """
    error = torch.where(mask, (log_probs - old_log_probs).exp() - 1.0, 0.0).abs()
    tokens = mask.sum()
    return {"val/first_ratio_error_avg": error.sum() / tokens.clamp(min=1), "num_ratios": tokens}


def value_loss(
    values: Tensor, returns: Tensor, mask: Tensor, old_values: Tensor | None = None, clip_range: float | None = None
) -> Tensor:
    """1/2 sum_t (V(s_t) - G_t)^2 per completion: squared error on the reward to go.

    In expectation the true V minimises it.

    Args:
        values: V(s_t), with gradient, [B, T].
        returns: G_t, [B, T]; detached.
        mask: bool [B, T].
        old_values: V(s_t) when the batch was collected; required with `clip_range`.
        clip_range: the larger of the errors of V and of V clipped to this distance from `old_values` (OpenAI's PPO);
            None is the plain squared error.
    """
    returns = returns.detach()
    error = (values - returns) ** 2
    if clip_range is not None:
        if old_values is None:
            raise ValueError("value_loss needs old_values where clip_range is set, got None; pass rollout.values.")
        clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
        error = torch.maximum(error, (clipped - returns) ** 2)
    return 0.5 * mean_over_completions(error, mask)
