"""Metrics: what a batch of answers says (under TRL's names: the README has the glossary), and of several one row."""

from __future__ import annotations

import numpy as np
import torch

from agents.functional import ESTIMATORS
from agents.sampling import Rollout
from agents.training.ranks import gather_objects

Metrics = dict[str, float]

# What a loss's metrics are means of, where it is not tokens: how many of these there were stands beside them.
COUNTED = {"policy/clipfrac_high_avg": "num_high", "policy/clipfrac_low_avg": "num_low"}


def rollout_metrics(rollout: Rollout, kl_estimator: str = "k1") -> Metrics:
    """What a batch of answers says, under TRL's names (the README has the glossary)."""
    each = {
        "objective/scores": rollout.scores,
        "objective/entropy": -rollout.log_probs.sum(dim=1),
        "completions/mean_length": rollout.mask.sum(dim=1),
        "completions/clipped_ratio": ~rollout.stopped,
    }
    if not rollout.ref_log_probs.isnan().any():  # as in another library's environment: no reference, no KL
        kl = ESTIMATORS[kl_estimator](rollout.log_probs - rollout.ref_log_probs)  # padding: log-ratio 0, k = 0
        returns = rollout.rewards.sum(dim=1)
        each |= {
            "objective/kl": kl.sum(dim=1),
            "objective/non_score_reward": returns - rollout.scores,
            "objective/rlhf_reward": returns,
        }
    if rollout.gold_scores is not None:
        each["objective/gold_scores"] = rollout.gold_scores
    means = torch.stack([values.double().mean() for values in each.values()]).tolist()  # one wait for the device
    return dict(zip(each, means, strict=True))


def reduce_minibatches(seen: list[Metrics]) -> Metrics:
    """What several minibatches say, in one row: means; of names that end in _max the largest, of ess the least."""
    columns = {name: [info[name] for info in seen] for name in (seen[0] if seen else ())}
    row = {name: float(np.mean(values)) for name, values in columns.items()}
    row |= {name: max(values) for name, values in columns.items() if name.endswith("_max")}
    return row | {name: min(values) for name, values in columns.items() if name.endswith("/ess")}


def merge_micro_batches(parts: list[Metrics]) -> Metrics:
    """What the parts of a minibatch say of all of it: the same as it would say in one piece.

    A mean of the parts' means, each weighed by how many it is the mean of: `num_answers` for losses, `num_tokens` or
    what `COUNTED` says for the rest. The counts of all are in the row too.
    """
    columns = {name: np.array([part[name] for part in parts]) for name in parts[0]}
    answers = columns["num_answers"]
    tokens = columns.get("num_tokens", answers)
    row: Metrics = {}
    for name, values in columns.items():
        if name.startswith("num_"):
            row[name] = float(values.sum())
        elif name.endswith("_max"):
            row[name] = float(values.max())
        else:
            count = answers if name.startswith("loss/") else columns.get(COUNTED.get(name, ""), tokens)
            row[name] = float((values * count).sum() / max(1.0, count.sum()))
    if "val/ess" in columns:  # (sum rho)^2 / (n sum rho^2)
        first = columns["val/ratio"] * tokens
        second = first**2 / np.maximum(tokens * columns["val/ess"], 1e-30)
        row["val/ess"] = float(first.sum() ** 2 / max(1e-30, tokens.sum() * second.sum()))
    return row


def reduce_ranks(metrics: Metrics) -> Metrics:
    """What all processes say, means per answer, in one row; each has equally many answers."""
    return reduce_minibatches(gather_objects(metrics))
