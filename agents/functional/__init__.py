"""Pure functions of [B, T] tensors and a mask: returns, advantages, losses, KL estimators, diagnostics."""

from agents.functional.baselines import batch_mean, group_relative, in_groups, leave_one_out
from agents.functional.diagnostics import explained_variance, policy_diagnostics, surrogate_diagnostics
from agents.functional.group_losses import GROUP_LOSSES, GroupLossName, completion_weights, group_loss
from agents.functional.importance import Level, correction_weights, importance_log_ratio
from agents.functional.kl import ESTIMATORS, adaptive_kl_coef, k1, k2, k3
from agents.functional.kl_loss import KL_LOSSES, KLLossName, exact_kl, sampled_kl, with_later_states
from agents.functional.losses import clipped_surrogate_loss, mean_over_completions, value_loss
from agents.functional.path_consistency import path_consistency_loss, regularized_returns
from agents.functional.policy_gradient import policy_gradient_loss
from agents.functional.precision import widen, widest_float
from agents.functional.returns import gae, masked_mean, masked_whiten, reward_to_go

__all__ = [
    "ESTIMATORS",
    "GROUP_LOSSES",
    "KL_LOSSES",
    "GroupLossName",
    "KLLossName",
    "Level",
    "adaptive_kl_coef",
    "batch_mean",
    "clipped_surrogate_loss",
    "completion_weights",
    "correction_weights",
    "exact_kl",
    "explained_variance",
    "gae",
    "group_loss",
    "group_relative",
    "importance_log_ratio",
    "in_groups",
    "k1",
    "k2",
    "k3",
    "leave_one_out",
    "masked_mean",
    "masked_whiten",
    "mean_over_completions",
    "path_consistency_loss",
    "policy_diagnostics",
    "policy_gradient_loss",
    "regularized_returns",
    "reward_to_go",
    "sampled_kl",
    "surrogate_diagnostics",
    "value_loss",
    "widen",
    "widest_float",
    "with_later_states",
]
