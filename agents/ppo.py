"""PPO: several optimizer steps from the same completions (Schulman et al. 2017, arXiv:1707.06347).

    rho_t = pi(a_t|s_t) / pi_old(a_t|s_t)                            importance weight, pi_old the behaviour policy
    L     = E[ sum_t min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t) ]
    loss  = -L + vf_coef E[ 1/2 sum_t (V(s_t) - G_t)^2 ]             `losses` in agents/actor_critic_base.py

What it adds to ActorCritic: the completions come from a fixed older policy. Each is used `n_epochs` times in
minibatches, weighted by rho_t. The clip removes the incentive to push rho_t far from 1. In the first minibatch rho = 1,
and the gradient is that of ActorCritic.

One update, from top to bottom:

    Agent.learn -> update                                              agents/agent.py, agents/update.py
       -> Agent.collect -> collect                                     agents/sampling/collection.py
       -> prepare: no-op by default                                    agents/preparation.py
    PPO.train -> ActorCriticBase.batch -> reward_to_go, gae            agents/functional/returns.py
              -> run_epochs, and for each minibatch                    agents/training/updater.py
                 -> Agent.backward -> compute_gradients                agents/training/gradients.py
                    -> ActorCriticBase.losses                          agents/actor_critic_base.py
                       -> PPO.policy_loss -> clipped_surrogate_loss    agents/functional/losses.py
                       -> PPO.critic_loss -> value_loss
                       -> add_kl: no-op by default                     agents/kl_in_loss.py
                 -> Agent.step
                    -> StepGuard.passes, Optimization.step             agents/training/{divergence,optimization}.py

Unlike Huang et al. 2024 (arXiv:2403.17031), by default: advantages are not whitened, V is regressed on the reward to go
and not clipped, losses are sums over a completion's tokens. Like them: V(s_T) = 0 at the end, gamma = 1, Adam's eps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from agents.actor_critic_base import ActorCriticBase
from agents.functional import clipped_surrogate_loss, surrogate_diagnostics, value_loss
from agents.sampling import Rollout
from agents.training import Batch, EpochSettings, Info, Metrics, run_epochs


@dataclass(eq=False)
class PPO(EpochSettings, ActorCriticBase):
    """Proximal policy optimisation, see this file's docstring."""

    clip_range_vf: float | None = None
    """The clip range of V around its old value; None does not clip V."""
    importance: Literal["token", "sequence", "prefix"] = "token"
    """What rho_t is the product over, see `importance_log_ratio`."""

    def train(self, rollout: Rollout) -> Metrics:
        """Takes `n_epochs` passes over the completions, in minibatches."""
        batch = self.batch(rollout)
        return run_epochs(self, batch) | {"val/explained_variance": self.explained_variance(batch)}

    def policy_loss(self, log_probs: Tensor, batch: Batch) -> tuple[Tensor, Info]:
        """- sum_t min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t)."""
        old_log_probs, mask = batch.rollout.log_probs, batch.rollout.mask  # log pi_old, before the first step
        arguments, level = (log_probs, old_log_probs, batch.advantages, mask, self.clip_range), self.importance
        loss = clipped_surrogate_loss(*arguments, importance=level)
        return loss, surrogate_diagnostics(*arguments, importance=level)

    def critic_loss(self, values: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        """Value loss, with V clipped to `clip_range_vf` around its value when the batch was collected."""
        return value_loss(values, returns, rollout.mask, rollout.values, self.clip_range_vf)
