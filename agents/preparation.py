"""What an update trains on, from what was sampled: the KL in the loss, and samplers that compute other log pi.

With `kl_in="loss"` the rewards are without their KL. With `sampler_correction` the trainer's policy computes log pi of
the completions again, before the update, without gradient:

    rho_t   = pi_trainer(a_t|s_t) / pi_sampler(a_t|s_t)     or its product, see `correction_weights`
    w_t     = rho_t, truncated or masked                    multiplies A_t in every agent
    pi_old  = pi_trainer                                    in PPO's weights rho, and in the KL of the rewards

(The decoupled mode of verl's docs/algo/rollout_corr_math.md; Hilton et al. 2021, arXiv:2110.00641.) Baselines and V use
returns without w_t, and the continuations of `credit="q"` are not corrected. Metrics of the rollout are of what was
sampled.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from agents.functional import correction_weights, importance_log_ratio, masked_mean
from agents.sampling import Rollout
from agents.training import Metrics, all_reduce_sum


def prepare(agent: Any, rollout: Rollout) -> tuple[Rollout, Metrics]:
    """Returns the rollout that an agent trains on, and the metrics of the correction.

    Args:
        agent: the agent.
        rollout: what was sampled, with beta times the KL of its log-probabilities in the rewards.
    """
    sampled, metrics = rollout, Metrics()
    if agent.sampler_correction is not None:
        rollout, metrics = corrected(agent, rollout)
    if (agent.current_kl_coef != 0 and rollout is not sampled) or agent.kl_in == "loss":
        kept = 0.0 if agent.kl_in == "loss" else rollout.log_probs - rollout.ref_log_probs
        change = agent.current_kl_coef * (sampled.log_probs - sampled.ref_log_probs - kept)
        rollout = replace(rollout, rewards=rollout.rewards + torch.where(rollout.mask, change, 0.0))
    return rollout, metrics


def corrected(agent: Any, rollout: Rollout) -> tuple[Rollout, Metrics]:
    """Returns the rollout with the trainer's log pi and the weights w_t, and metrics over the tokens of all ranks."""
    log_probs, mask = trainer_log_probs(agent, rollout), rollout.mask
    level, cap = agent.sampler_level, agent.sampler_cap
    weights = correction_weights(log_probs, rollout.log_probs, mask, agent.sampler_correction, level, cap)
    above = importance_log_ratio(log_probs, rollout.log_probs, mask, level).exp() > cap
    metrics = {
        "sampler/weight_avg": float(masked_mean(weights, mask, all_reduce_sum)),
        "sampler/capped_ratio": float(masked_mean(above.to(weights.dtype), mask, all_reduce_sum)),
    }
    return replace(rollout, log_probs=log_probs, weights=weights), metrics


@torch.no_grad()
def trainer_log_probs(agent: Any, rollout: Rollout) -> Tensor:
    """log pi(a_t|s_t) as the update computes it, [B, T], in micro-batches; 0 where the mask is False."""
    rows = torch.arange(len(rollout))
    completions, size = rollout.without_strings(), agent.micro_batch_size or len(rollout)
    parts = [agent.evaluate_actions(completions[each]).log_probs for each in rows.split(size)]  # type: ignore[no-untyped-call]
    return torch.where(rollout.mask, torch.cat(parts), 0.0)
