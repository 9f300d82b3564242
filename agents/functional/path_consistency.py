"""The loss of PathConsistency: the variance, within a group, of what is the same for all completions at pi*.

From pi*(y|x) = pi_ref(y|x) exp(r(x, y) / beta) / Z(x), for every completion y of a prompt x:

    beta log Z(x) = r(x, y) - beta (log pi*(y|x) - log pi_ref(y|x))

The right side with pi in place of pi* is R(y). All R(y) of each prompt are equal if and only if pi = pi*.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.functional.baselines import in_groups, leave_one_out
from agents.functional.losses import mean_over_completions
from agents.functional.returns import check_shapes


def regularized_returns(
    log_probs: Tensor, ref_log_probs: Tensor, rewards: Tensor, mask: Tensor, kl_coef: float
) -> Tensor:
    """R(y) = r(x, y) - beta (log pi(y|x) - log pi_ref(y|x)), [B]; 0 where a row of the mask is all False.

    Args:
        log_probs: log pi(a_t|s_t), with gradient, [B, T].
        ref_log_probs: log pi_ref(a_t|s_t), [B, T].
        rewards: r_t without the KL, [B, T]; their sum is r(x, y).
        mask: bool [B, T].
        kl_coef: beta.
    """
    check_shapes(mask, log_probs=log_probs, ref_log_probs=ref_log_probs, rewards=rewards)
    return torch.where(mask, rewards - kl_coef * (log_probs - ref_log_probs), 0.0).sum(dim=1)


def path_consistency_loss(
    log_probs: Tensor, ref_log_probs: Tensor, rewards: Tensor, mask: Tensor, kl_coef: float, num_generations: int
) -> Tensor:
    """1 / (2 beta) times the variance of R(y) within a group, a mean per completion; a scalar.

        loss_i = K / (K - 1) (R_i - mean(R_1 .. R_K))^2 / (2 beta)

    The mean of a group's K losses is its unbiased variance over 2 beta (VarGrad, Richter et al. 2020,
    arXiv:2010.10436). The completions may be anyone's. A row whose mask is all False is a completion that is skipped:
    the others of its group are compared without it. The only one left of a group is skipped too.

    Args:
        log_probs: log pi(a_t|s_t), with gradient, [B, T]; the completions of one prompt are contiguous.
        ref_log_probs: log pi_ref(a_t|s_t), [B, T].
        rewards: r_t without the KL, [B, T].
        mask: bool [B, T].
        kl_coef: beta, > 0.
        num_generations: K, completions per prompt, at least 2.

    Raises:
        ValueError: beta is not positive; fewer than two completions per prompt, or B is not a multiple of it.
    """
    if not kl_coef > 0:
        raise ValueError(f"path_consistency_loss needs kl_coef > 0, got {kl_coef}: without a KL there is no pi*.")
    returns = regularized_returns(log_probs, ref_log_probs, rewards, mask, kl_coef)
    valid = mask.any(dim=1)
    residuals = returns - leave_one_out(returns, num_generations, valid)  # n / (n - 1) (R_i - mean), of n that are left
    kept = in_groups(valid, num_generations)
    left = kept.view(-1, num_generations).sum(dim=1).repeat_interleave(num_generations).clamp(min=1).to(returns.dtype)
    losses = (left - 1) / left * residuals**2 / (2.0 * kl_coef)
    return mean_over_completions(losses[:, None], kept[:, None])
