"""One update of an agent: sample completions, train on them, count, adapt beta, watch the metrics."""

from __future__ import annotations

import math
from typing import Any

from agents.functional import adaptive_kl_coef
from agents.preparation import prepare
from agents.sampling import Rollout
from agents.skipped import all_skipped
from agents.training import (
    Metrics,
    all_reduce_sum,
    batch_statistics,
    check_metric_name,
    explain_divergence,
    reduce_ranks,
    reward_metrics,
    rollout_metrics,
    trainer_state,
)
from textenv import TextMDP


def update(agent: Any, total_timesteps: int | None = None) -> tuple[Rollout, Metrics]:
    """Collects completions and trains on them; returns them and the metrics to log, all of them finite.

    Args:
        agent: the agent.
        total_timesteps: the tokens at which the training ends, for step sizes that depend on the share that is done,
            and for reward functions that ask for `trainer_state`.

    Raises:
        Diverged: the policy cannot sample, or several optimizer steps in a row could not be taken.
        RewardError: no completion can be trained on, or a reward function logs a number under the name of a metric.
    """
    before = agent.num_timesteps
    mdp: TextMDP | None = agent.mdp
    if mdp is not None:
        mdp.training.state = trainer_state(agent, mdp, total_timesteps)
        mdp.training.check_name = check_metric_name
        mdp.training.take_metrics()  # what an evaluation has logged
    with explain_divergence(agent):
        rollout = agent.collect()
    metrics = reduce_ranks(
        rollout_metrics(rollout, agent.kl_estimator, agent.trained_rows(rollout), agent.num_generations)
    )
    count, trained = (int(metrics.pop(name)) for name in ("num_completions", "num_trained"))
    if trained == 0:
        raise all_skipped(mdp, agent.num_updates)
    metrics |= batch_statistics(rollout, agent.num_generations)
    share = min(1.0, before / total_timesteps) if total_timesteps else 0.0
    agent.optimization.set_rates(share, agent.num_updates, agent.lr_schedule, agent.lr_warmup)
    agent.step_guard.begin()
    try:
        prepared, found = prepare(agent, rollout)
        metrics |= found | agent.train(prepared)
    finally:  # an agent whose training has failed does not keep the completions, but for a replay
        metrics |= agent.step_guard.end()
    if agent.kl_target is not None and agent.kl_coef is not None:
        metrics["objective/kl_coef"] = agent.kl_coef
        agent.kl_coef = adaptive_kl_coef(
            agent.kl_coef, metrics["objective/kl"], agent.kl_target, count, agent.kl_horizon
        )
    if mdp is not None:
        metrics |= reward_metrics(mdp)
    sampled = rollout.num_sampled + (agent.num_timesteps - before)  # `train` may have sampled more
    agent.num_timesteps = before + int(all_reduce_sum(sampled))
    agent.num_updates += 1
    metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}  # nan: it does not exist
    return rollout, metrics | agent.health.observe(agent, metrics, rollout)
