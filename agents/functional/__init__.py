"""Pure functions of [B, T] tensors and a mask: returns, advantages, losses, KL estimators, diagnostics."""

from agents.functional.baselines import batch_mean, group_relative, in_groups, leave_one_out
from agents.functional.diagnostics import explained_variance, policy_diagnostics, surrogate_diagnostics
from agents.functional.kl import ESTIMATORS, adaptive_kl_coef, k1, k2, k3
from agents.functional.losses import clipped_surrogate_loss, mean_over_completions, value_loss
from agents.functional.policy_gradient import policy_gradient_loss
from agents.functional.returns import gae, masked_mean, masked_whiten, reward_to_go

__all__ = [
    "ESTIMATORS",
    "adaptive_kl_coef",
    "batch_mean",
    "clipped_surrogate_loss",
    "explained_variance",
    "gae",
    "group_relative",
    "in_groups",
    "k1",
    "k2",
    "k3",
    "leave_one_out",
    "masked_mean",
    "masked_whiten",
    "mean_over_completions",
    "policy_diagnostics",
    "policy_gradient_loss",
    "reward_to_go",
    "surrogate_diagnostics",
    "value_loss",
]
