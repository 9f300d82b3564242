"""Metrics of a rollout. Names follow TRL's."""

from __future__ import annotations

import torch
from torch import Tensor

from agents.functional import ESTIMATORS, widen
from agents.sampling import Rollout
from agents.training.reduction import Metrics


def rollout_metrics(
    rollout: Rollout, kl_estimator: str = "k1", trained: Tensor | None = None, num_generations: int = 1
) -> Metrics:
    """Returns the metrics of a rollout: means over its completions without those that are skipped (nan if all are).

    Args:
        rollout: the rollout.
        kl_estimator: the estimator of `objective/kl`.
        trained: bool [B], the completions that an agent trains on; by default all that are not skipped.
        num_generations: completions per group.

    Returns:
        The means; `completions/skipped`, the number of completions that are skipped; `completions/skipped_groups`, the
        number of groups of which none is trained on; `num_completions` and `num_trained`, the numbers of completions
        in the means and of those trained on.
    """
    valid = rollout.valid
    trained = valid if trained is None else trained
    each = {
        "objective/scores": rollout.scores,
        "objective/entropy": -rollout.log_probs.sum(dim=1),
        "completions/mean_length": rollout.mask.sum(dim=1),
        "completions/clipped_ratio": ~rollout.stopped,
    }
    if not rollout.ref_log_probs.isnan().any():  # nan in external environments: no reference, no KL
        kl = ESTIMATORS[kl_estimator](rollout.log_probs - rollout.ref_log_probs)  # padding: log-ratio 0, k = 0
        returns = rollout.rewards.sum(dim=1)
        each |= {
            "objective/kl": kl.sum(dim=1),
            "objective/non_score_reward": returns - rollout.scores,
            "objective/rlhf_reward": returns,
        }
    if rollout.gold_scores is not None:
        each["objective/gold_scores"] = rollout.gold_scores
    count = valid.sum()
    numbers = {name: torch.where(valid, widen(values), 0.0).sum() / count for name, values in each.items()}
    numbers |= {
        "completions/skipped": (~valid).sum(),
        "completions/skipped_groups": (~trained.view(-1, num_generations).any(dim=1)).sum(),
        "num_completions": count,
        "num_trained": trained.sum(),
    }
    found = torch.stack([widen(number) for number in numbers.values()]).tolist()  # one device synchronisation
    return dict(zip(numbers, found, strict=True))
