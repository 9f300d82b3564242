"""Training: optimizer steps, metrics, and what serves scale (master weights, ranks, sharding)."""

from agents.training import ranks
from agents.training.master_weights import Masters
from agents.training.metrics import Metrics, over_ranks, rollout_metrics, whole
from agents.training.ranks import by_first_rank, num_ranks, rank, sum_over_ranks
from agents.training.sharding import gather_moments, gathered, shard, shard_moments
from agents.training.updater import Info, Losses, several_epochs

__all__ = [
    "Info",
    "Losses",
    "Masters",
    "Metrics",
    "by_first_rank",
    "gather_moments",
    "gathered",
    "num_ranks",
    "over_ranks",
    "rank",
    "ranks",
    "rollout_metrics",
    "several_epochs",
    "shard",
    "shard_moments",
    "sum_over_ranks",
    "whole",
]
