"""The policy gradient: the loss of REINFORCE and ActorCritic, a mean per completion like those of losses.py."""

from __future__ import annotations

from torch import Tensor

from agents.functional.losses import mean_over_completions
from agents.functional.returns import check_shapes


def policy_gradient_loss(log_probs: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """- sum_t log pi(a_t|s_t) w_t: its gradient estimates that of -J if w_t estimates Q(s_t, a_t), up to a baseline.

    The log-derivative trick, grad pi = pi grad log pi (Williams 1992; Sutton et al. 2000).

    Args:
        log_probs: log pi(a_t|s_t), with gradient, [B, T].
        weights: w_t: whole return, reward to go, Q or advantage, [B, T]; detached.
        mask: bool [B, T].
    """
    check_shapes(mask, log_probs=log_probs, weights=weights)
    return -mean_over_completions(log_probs * weights.detach(), mask)
