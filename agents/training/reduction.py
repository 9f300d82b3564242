"""How metrics are reduced: one table, and the values of micro-batches, ranks and minibatches reduced to one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Literal, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from agents.training.ranks import gather_objects

Metrics = dict[str, float]


@dataclass(frozen=True)
class Metric:
    """How several values of a metric are reduced to one.

    Attributes:
        merge: of the micro-batches and ranks of a minibatch, and of the ranks of a rollout. mean: weighted by `weight`.
            count: a sum that weighs means, and is not logged. ess: see `merged_ess`.
        weight: the count of what the metric is a mean over.
        minibatches: of the minibatches of an update.
        is_loss: whether it must be finite for the optimizer step of its minibatch to be taken.
    """

    merge: Literal["mean", "sum", "max", "ess", "count"] = "mean"
    weight: str = "num_completions"
    minibatches: Literal["mean", "first", "max", "min"] = "mean"
    is_loss: bool = False


PER_COMPLETION, PER_TOKEN, COUNT, LOSS = Metric(), Metric(weight="num_tokens"), Metric("count"), Metric(is_loss=True)

# A metric that is not in the table, of an agent from outside, is a mean over completions and over minibatches, and no
# loss. Another one is a line: METRICS["my/largest"] = Metric("max", minibatches="max").
METRICS: dict[str, Metric] = {
    "objective/scores": PER_COMPLETION,
    "objective/gold_scores": PER_COMPLETION,
    "objective/kl": PER_COMPLETION,
    "objective/entropy": PER_COMPLETION,
    "objective/non_score_reward": PER_COMPLETION,
    "objective/rlhf_reward": PER_COMPLETION,
    "completions/mean_length": PER_COMPLETION,
    "completions/clipped_ratio": PER_COMPLETION,
    "completions/skipped": Metric("sum"),
    "completions/skipped_groups": Metric("sum"),
    "loss/policy_avg": LOSS,
    "loss/value_avg": LOSS,
    "loss/kl_avg": LOSS,
    "val/ratio": PER_TOKEN,
    "val/ratio_error_max": Metric("max", minibatches="max"),
    "val/first_ratio_error_avg": Metric(weight="num_ratios", minibatches="first"),
    "val/ess": Metric("ess", "num_tokens", minibatches="min"),
    "policy/approxkl_avg": PER_TOKEN,
    "policy/clipfrac_avg": PER_TOKEN,
    "policy/clipfrac_high_avg": Metric(weight="num_high"),
    "policy/clipfrac_low_avg": Metric(weight="num_low"),
    "grad_norm": Metric(),
    "num_completions": COUNT,
    "num_trained": COUNT,
    "num_tokens": COUNT,
    "num_ratios": COUNT,
    "num_high": COUNT,
    "num_low": COUNT,
    "train/loss": LOSS,  # from here on Stable-Baselines3's, the first TRL's too
    "train/policy_gradient_loss": LOSS,
    "train/policy_loss": LOSS,
    "train/value_loss": LOSS,
    "train/entropy_loss": LOSS,
}


def metric(name: str) -> Metric:
    """How a metric is reduced; the default where the table does not have it."""
    return METRICS.get(name, PER_COMPLETION)


def without_counts(row: Metrics) -> Metrics:
    """The metrics that are logged."""
    return {name: value for name, value in row.items() if metric(name).merge != "count"}


def find_losses(row: Metrics) -> Metrics:
    """The losses among the metrics."""
    return {name: value for name, value in row.items() if metric(name).is_loss}


def merge_micro_batches(rows: list[Metrics]) -> Metrics:
    """Merges the metrics of a minibatch's micro-batches; the result equals the metrics of the undivided minibatch.

    A micro-batch without a metric is left out of it.

    Raises:
        ValueError: a metric is a mean over something whose count is not among the metrics.
    """
    merged: Metrics = {}
    for name in dict.fromkeys(chain.from_iterable(rows)):
        how, having = metric(name), [row for row in rows if name in row]
        values = np.array([row[name] for row in having])
        if how.merge in ("sum", "count"):
            merged[name] = float(values.sum())
        elif how.merge == "max":
            merged[name] = float(values.max())
        elif any(how.weight not in row for row in having):
            raise ValueError(f"{name} is a mean over {how.weight}, which the losses must return too, got {having}.")
        elif how.merge == "ess" and len(rows) > 1:
            ratio, count = (np.array([row[key] for row in having]) for key in ("val/ratio", how.weight))
            merged[name] = merged_ess(values, ratio, count)
        else:
            count = np.array([row[how.weight] for row in having])
            merged[name] = float((values * count).sum() / max(1.0, count.sum()))
    return merged


def merged_ess(ess: NDArray[np.float64], ratio: NDArray[np.float64], count: NDArray[np.float64]) -> float:
    """(sum rho)^2 / (n sum rho^2) of all tokens, from that of parts, their mean ratios and their numbers of tokens."""
    first = ratio * count
    second = first**2 / np.maximum(count * ess, 1e-30)
    return float(first.sum() ** 2 / max(1e-30, count.sum() * second.sum()))


_REDUCTIONS: dict[str, Callable[[list[float]], SupportsFloat]] = {
    "mean": np.mean,
    "first": lambda values: values[0],
    "max": max,
    "min": min,
}


def reduce_minibatches(rows: list[Metrics]) -> Metrics:
    """Reduces the metrics of an update's minibatches to one row.

    A minibatch without a metric, or whose value is not finite (its step is skipped), is left out.
    """
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if np.isfinite(value):
                columns.setdefault(name, []).append(value)
    return {name: float(_REDUCTIONS[metric(name).minibatches](values)) for name, values in columns.items()}


def reduce_ranks(metrics: Metrics) -> Metrics:
    """Reduces the `rollout_metrics` of all ranks to one row: means over all ranks' completions, sums of counts."""
    rows = gather_objects(metrics)
    sums = {name: sum(row[name] for row in rows) for name in rows[0] if metric(name).merge in ("sum", "count")}
    measured = [row for row in rows if row["num_completions"] > 0] or rows[:1]  # a rank may have none that is scored
    shares = [row["num_completions"] / max(1.0, sums["num_completions"]) for row in measured]
    means = {
        name: sum(share * row[name] for share, row in zip(shares, measured, strict=True))
        for name in rows[0]
        if name not in sums
    }
    return means | sums
