"""Metrics of a rollout, and metrics of micro-batches, minibatches and ranks merged into one row. Names follow TRL's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agents.functional import ESTIMATORS
from agents.sampling import Rollout
from agents.training.ranks import gather_objects

Metrics = dict[str, float]

# Loss metrics that are means over a subset of the tokens, and the metric that counts the subset.
COUNTS = {
    "policy/clipfrac_high_avg": "num_high",
    "policy/clipfrac_low_avg": "num_low",
    "val/first_ratio_error_avg": "num_ratios",
}

TOTALS = ("completions/skipped", "num_")  # rollout metrics whose names begin so are sums over ranks, not means


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
    numbers = {name: torch.where(valid, values.double(), 0.0).sum() / count for name, values in each.items()}
    numbers |= {
        "completions/skipped": (~valid).sum(),
        "completions/skipped_groups": (~trained.view(-1, num_generations).any(dim=1)).sum(),
        "num_completions": count,
        "num_trained": trained.sum(),
    }
    found = torch.stack([number.double() for number in numbers.values()]).tolist()  # one device synchronisation
    return dict(zip(numbers, found, strict=True))


def reduce_minibatches(rows: list[Metrics]) -> Metrics:
    """Reduces the metrics of several minibatches to one row.

    Takes the mean; of names that end in `_max` the largest value, of those that end in `/ess` the smallest, of those
    that begin with `val/first_` that of the first minibatch. Values that are not finite, of minibatches whose step is
    skipped, are left out.
    """
    columns = {name: [row[name] for row in rows if np.isfinite(row[name])] for name in (rows[0] if rows else ())}
    columns = {name: values for name, values in columns.items() if values}
    reduced = {name: float(np.mean(values)) for name, values in columns.items()}
    reduced |= {name: values[0] for name, values in columns.items() if name.startswith("val/first_")}
    reduced |= {name: max(values) for name, values in columns.items() if name.endswith("_max")}
    return reduced | {name: min(values) for name, values in columns.items() if name.endswith("/ess")}


def merge_micro_batches(rows: list[Metrics]) -> Metrics:
    """Merges the metrics of a minibatch's micro-batches; the result equals the metrics of the undivided minibatch.

    A mean is the mean of the micro-batches' means, each weighted by its count: `num_completions` for losses, else
    `num_tokens` or the count in `COUNTS`. The row also has the total counts.
    """
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    completions = columns["num_completions"]
    tokens = columns.get("num_tokens", completions)
    merged: Metrics = {}
    for name, values in columns.items():
        if name.startswith("num_"):
            merged[name] = float(values.sum())
        elif name.endswith("_max"):
            merged[name] = float(values.max())
        else:
            count = completions if name.startswith("loss/") else columns.get(COUNTS.get(name, ""), tokens)
            merged[name] = float((values * count).sum() / max(1.0, count.sum()))
    if "val/ess" in columns and len(rows) > 1:  # (sum rho)^2 / (n sum rho^2)
        first = columns["val/ratio"] * tokens
        second = first**2 / np.maximum(tokens * columns["val/ess"], 1e-30)
        merged["val/ess"] = float(first.sum() ** 2 / max(1e-30, tokens.sum() * second.sum()))
    return merged


def reduce_ranks(metrics: Metrics) -> Metrics:
    """Reduces the `rollout_metrics` of all ranks to one row: means over all ranks' completions, sums of counts."""
    rows = gather_objects(metrics)
    counts = {name: sum(row[name] for row in rows) for name in rows[0] if name.startswith(TOTALS)}
    measured = [row for row in rows if row["num_completions"] > 0] or rows[:1]  # a rank may have none that is scored
    shares = [row["num_completions"] / max(1.0, counts["num_completions"]) for row in measured]
    means = {
        name: sum(share * row[name] for share, row in zip(shares, measured, strict=True))
        for name in rows[0]
        if name not in counts
    }
    return means | counts
