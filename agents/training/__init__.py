"""Training: optimizer steps, metrics, and what serves scale (master weights, ranks, sharding)."""

from agents.training.master_weights import MasterWeights
from agents.training.metrics import Metrics, merge_micro_batches, reduce_ranks, rollout_metrics
from agents.training.ranks import (
    all_reduce_gradients,
    all_reduce_sum,
    broadcast_parameters,
    gather_objects,
    per_rank,
    rank,
    rank_seed,
    run_on_rank0,
    world_size,
)
from agents.training.sharding import gather_moments, gather_tensor, shard, shard_moments
from agents.training.updater import Info, Losses, run_epochs

__all__ = [
    "Info",
    "Losses",
    "MasterWeights",
    "Metrics",
    "all_reduce_gradients",
    "all_reduce_sum",
    "broadcast_parameters",
    "gather_moments",
    "gather_objects",
    "gather_tensor",
    "merge_micro_batches",
    "per_rank",
    "rank",
    "rank_seed",
    "reduce_ranks",
    "rollout_metrics",
    "run_epochs",
    "run_on_rank0",
    "shard",
    "shard_moments",
    "world_size",
]
