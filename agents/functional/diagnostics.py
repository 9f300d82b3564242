"""Diagnostics of an update: what to watch in the ratios of the new policy to the old one, and in V."""

from __future__ import annotations

import torch
from torch import Tensor

from agents.functional.importance import Level, importance_log_ratio
from agents.functional.kl import k3
from agents.functional.precision import widen
from agents.functional.returns import Total, check_shapes, local_total, masked_mean


@torch.no_grad()
def surrogate_diagnostics(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_range: float | None,
    clip_range_high: float | None = None,
    importance: Level = "token",
) -> dict[str, Tensor]:
    """Returns metrics of the clipped surrogate loss over the n real tokens; arguments are those of the loss.

    The glossary of agents/README.md defines them; `num_*` are the numbers of tokens that they are means over. rho is
    that of `importance`; the KL is that of tokens at every level.
    """
    check_shapes(mask, log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    of_tokens = torch.where(mask, log_probs - old_log_probs, 0.0)
    ratio = importance_log_ratio(log_probs, old_log_probs, mask, importance).exp()
    binds = torch.zeros_like(mask)
    if clip_range is not None:
        above = clip_range if clip_range_high is None else clip_range_high
        binds = mask & (ratio.clamp(1.0 - clip_range, 1.0 + above) * advantages < ratio * advantages)
    rho, high, low = torch.where(mask, ratio, 0.0), mask & (advantages > 0), mask & (advantages < 0)
    weights = rho / rho.amax().clamp(min=1e-30)  # their squares are finite, however large rho is
    tokens = mask.sum().clamp(min=1)
    return {
        "val/ratio": rho.sum() / tokens,
        "val/ess": weights.sum() ** 2 / (tokens * (weights**2).sum()).clamp(min=1e-30),  # Kong 1992
        "val/ratio_error_max": (ratio - 1.0).abs().max(),
        "policy/approxkl_avg": k3(-of_tokens).sum() / tokens,
        "policy/clipfrac_avg": binds.sum() / tokens,
        "policy/clipfrac_high_avg": (binds & high).sum() / high.sum().clamp(min=1),
        "policy/clipfrac_low_avg": (binds & low).sum() / low.sum().clamp(min=1),
        "num_tokens": mask.sum(),
        "num_high": high.sum(),
        "num_low": low.sum(),
    }


@torch.no_grad()
def policy_diagnostics(loss: Tensor, log_probs: Tensor, old_log_probs: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Returns the metrics of any policy loss: its value, and the mean of |rho_t - 1| over the real tokens.

    Before the first step pi is the behaviour policy, so `val/first_ratio_error_avg` of the first minibatch is 0 up to
    rounding, unless the sampler's log-probabilities are not those of the policy. It is a mean over `num_ratios` tokens.
    Arguments are the loss, and those of `clipped_surrogate_loss`.
    """
    check_shapes(mask, log_probs=log_probs, old_log_probs=old_log_probs)
    error = torch.where(mask, (log_probs - old_log_probs).exp() - 1.0, 0.0).abs()
    mean, count = error.sum() / mask.sum().clamp(min=1), mask.sum()
    return {"loss/policy_avg": loss.detach(), "val/first_ratio_error_avg": mean, "num_ratios": count}


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, total: Total = local_total) -> Tensor:
    """1 - Var[G - V] / Var[G] over the True entries: 1 for a perfect critic, 0 for a constant one.

    NaN where all returns are equal up to rounding: there is no variance to explain.
    """
    returns, values = widen(returns), widen(values)

    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, mask, total)) ** 2, mask, total)

    return_variance = variance(returns)
    rounding = 4500 * torch.finfo(returns.dtype).eps
    varies = return_variance > rounding**2 * masked_mean(returns**2, mask, total)
    return torch.where(varies, 1.0 - variance(returns - values) / return_variance, torch.nan)
