"""Training: optimizer steps, metrics, and what serves scale (master weights, ranks, sharding)."""

from agents.training.divergence import MOST_SKIPPED, StepGuard, abridge, advice, check_finite, explain_divergence
from agents.training.gradients import compute_gradients
from agents.training.health import HealthMonitor
from agents.training.master_weights import MasterWeights
from agents.training.metrics import rollout_metrics
from agents.training.optimization import Optimization, trainable_parameters
from agents.training.optimizer_state import (
    drop_optimizer_tensors,
    load_optimizer_tensors,
    optimizer_tensors,
    parameter_names,
    take_tensor,
)
from agents.training.optimizers import SCHEDULES, default_learning_rate, find_optimizer, is_pretrained
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
from agents.training.reduction import METRICS, Metric, Metrics, find_losses, reduce_ranks
from agents.training.replay import Replay
from agents.training.reward_log import check_metric_name, reward_metrics, trainer_state
from agents.training.saved_health import health_state, restore_health
from agents.training.sharding import gather_tensor, shard
from agents.training.statistics import batch_statistics
from agents.training.updater import (
    Batch,
    EpochSettings,
    Info,
    minibatches,
    run_epochs,
    shuffles,
    split_rows,
    take_steps,
)

__all__ = [
    "METRICS",
    "MOST_SKIPPED",
    "SCHEDULES",
    "Batch",
    "EpochSettings",
    "HealthMonitor",
    "Info",
    "MasterWeights",
    "Metric",
    "Metrics",
    "Optimization",
    "Replay",
    "StepGuard",
    "abridge",
    "advice",
    "all_reduce_gradients",
    "all_reduce_sum",
    "batch_statistics",
    "broadcast_parameters",
    "check_finite",
    "check_metric_name",
    "compute_gradients",
    "default_learning_rate",
    "drop_optimizer_tensors",
    "explain_divergence",
    "find_losses",
    "find_optimizer",
    "gather_objects",
    "gather_tensor",
    "health_state",
    "is_pretrained",
    "load_optimizer_tensors",
    "minibatches",
    "optimizer_tensors",
    "parameter_names",
    "per_rank",
    "rank",
    "rank_seed",
    "reduce_ranks",
    "restore_health",
    "reward_metrics",
    "rollout_metrics",
    "run_epochs",
    "run_on_rank0",
    "shard",
    "shuffles",
    "split_rows",
    "take_steps",
    "take_tensor",
    "trainable_parameters",
    "trainer_state",
    "world_size",
]
