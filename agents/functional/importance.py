"""Importance weights of tokens whose completions another policy has sampled: by token, sequence or prefix."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from agents.functional.returns import check_shapes

Level = Literal["token", "sequence", "prefix", "geometric"]


def importance_log_ratio(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor, level: Level = "token") -> Tensor:
    """log rho_t, the log of each token's importance weight, [B, T]; 0 where the mask is False.

        "token"      pi(a_t|s_t) / pi_old(a_t|s_t)                PPO, GRPO; s_t stays that of pi_old
        "prefix"     prod_{u <= t} pi(a_u|s_u) / pi_old(a_u|s_u)  Zhang et al. 2026, arXiv:2605.07331; s_t is corrected
        "sequence"   pi(y|x) / pi_old(y|x)                        RLOO; the tokens after t are corrected too
        "geometric"  (pi(y|x) / pi_old(y|x))^(1 / |y|)            GSPO (Zheng et al. 2025, arXiv:2507.18071)

    E_old[sum_t rho_t w_t grad log pi(a_t|s_t)] is the policy gradient by "sequence" if w_t is a return, and by "prefix"
    if w_t depends on no later token, as the one-step advantage under the exact V of pi does.

    rho_t has the value of the product and the gradient of the token alone, grad rho_t = rho_t grad log pi(a_t|s_t), as
    the policy gradient needs it: each other token of the product has a term of its own in the sum.

    Args:
        log_probs: log pi(a_t|s_t), with gradient, [B, T].
        old_log_probs: log pi_old(a_t|s_t) of the behaviour policy, [B, T].
        mask: bool [B, T].
        level: what the product is over.
    """
    check_shapes(mask, log_probs=log_probs, old_log_probs=old_log_probs)
    log_ratio = torch.where(mask, log_probs - old_log_probs, 0.0)
    if level == "token":
        return log_ratio
    value = _PRODUCTS[level](log_ratio.detach(), mask)
    return torch.where(mask, value + (log_ratio - log_ratio.detach()), 0.0)


_PRODUCTS = {
    "sequence": lambda log_ratio, mask: log_ratio.sum(dim=1, keepdim=True),
    "prefix": lambda log_ratio, mask: log_ratio.cumsum(dim=1),
    "geometric": lambda log_ratio, mask: (
        log_ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    ),
}


def correction_weights(
    log_probs: Tensor,
    sampler_log_probs: Tensor,
    mask: Tensor,
    correction: Literal["truncate", "mask"],
    level: Level = "token",
    cap: float = 2.0,
) -> Tensor:
    """Weights of tokens whose sampler computes other log-probabilities than the trainer, [B, T]; 0 off the mask.

        rho_t = pi_trainer / pi_sampler                        by token, sequence or prefix: `importance_log_ratio`
        "truncate"  w_t = min(rho_t, cap)
        "mask"      w_t = rho_t where rho_t <= cap, else 0

    By token and truncated: TIS (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training"). By sequence, truncated or masked: Liu et al. 2025, "When speed kills stability"; verl's
    docs/algo/rollout_corr_math.md.

    Args:
        log_probs: log pi(a_t|s_t) of the policy that is trained, before the update, [B, T]; detached.
        sampler_log_probs: log pi(a_t|s_t) as the sampler returned it, [B, T].
        mask: bool [B, T].
        correction: what becomes of weights above the cap.
        level: what the product is over.
        cap: the largest weight.
    """
    ratio = importance_log_ratio(log_probs.detach(), sampler_log_probs, mask, level).exp()
    kept = ratio.clamp(max=cap) if correction == "truncate" else torch.where(ratio <= cap, ratio, 0.0)
    return torch.where(mask, kept, 0.0)
