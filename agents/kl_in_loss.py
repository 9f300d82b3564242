"""The KL as a term of an agent's loss, where `kl_in` is "loss"."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from agents.functional import exact_kl, mean_over_completions, sampled_kl
from agents.policy import ActionEvaluation, FullEvaluation
from agents.sampling import Rollout
from agents.training import Info


def add_kl(
    agent: Any,
    loss: Tensor,
    info: Info,
    rollout: Rollout,
    evaluation: ActionEvaluation | FullEvaluation,
    weights: Tensor | None = None,
) -> tuple[Tensor, Info]:
    """Returns a policy loss and its metrics; with `kl_in="loss"` plus beta times the KL, by `kl_loss`.

    Args:
        agent: the agent.
        loss: the loss, a mean per completion.
        info: its metrics.
        rollout: the completions.
        evaluation: of these completions, with gradients.
        weights: what the loss weighs the tokens of each completion by, [B, 1]; None is 1.
    """
    if agent.kl_in == "reward":
        return loss, info
    log_probs, mask = evaluation.log_probs, rollout.mask
    if agent.kl_loss == "exact":
        assert isinstance(evaluation, FullEvaluation)
        reference = agent.evaluate_reference(rollout).to(log_probs.dtype)
        kl = exact_kl(evaluation.all_log_probs, reference, mask)
    else:
        kl = sampled_kl(agent.kl_loss, log_probs, rollout.ref_log_probs, rollout.log_probs, mask)
    if rollout.weights is not None:  # of completions of another sampler
        kl = rollout.weights * kl
    kl = kl if weights is None else weights.to(kl.dtype) * kl
    added = agent.current_kl_coef * mean_over_completions(kl, mask)
    return loss + added, info | {"loss/kl_avg": added.detach()}
