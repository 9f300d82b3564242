"""Training: optimizer steps, metrics, and what serves scale (master weights, ranks, sharding)."""

from agents.training import ranks
from agents.training.master_weights import MasterWeights
from agents.training.metrics import Metrics, merge_micro_batches, reduce_ranks, rollout_metrics
from agents.training.ranks import all_reduce_sum, rank, run_on_rank0, world_size
from agents.training.sharding import gather_moments, gather_tensor, shard, shard_moments
from agents.training.updater import Info, Losses, run_epochs

__all__ = [
    "Info",
    "Losses",
    "MasterWeights",
    "Metrics",
    "all_reduce_sum",
    "gather_moments",
    "gather_tensor",
    "merge_micro_batches",
    "rank",
    "ranks",
    "reduce_ranks",
    "rollout_metrics",
    "run_epochs",
    "run_on_rank0",
    "shard",
    "shard_moments",
    "world_size",
]
