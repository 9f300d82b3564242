"""Actor-critic: weights each token by how much better than expected it was.

    V(s) = E[G_t | s_t = s]                                                      trained by MSE on the reward to go
    A_t  = r_t + gamma V(s_{t+1}) - V(s_t)                           lambda = 0
    A_t  = sum_l (gamma lambda)^l (r_{t+l} + gamma V(s_{t+l+1}) - V(s_{t+l}))    GAE(lambda)
    grad J = E[ sum_t grad log pi(a_t|s_t) A_t ]
    loss = -E[ sum_t log pi(a_t|s_t) A_t ] + vf_coef E[ 1/2 sum_t (V(s_t) - G_t)^2 ]

What it adds to REINFORCE: the value head V, which turns the reward to go into an advantage for each token. `losses` in
agents/actor_critic_base.py computes the loss. (Sutton et al. 2000; Mnih et al. 2016, arXiv:1602.01783; Schulman et al.
2016, arXiv:1506.02438.)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from agents.actor_critic_base import ActorCriticBase
from agents.functional import masked_mean, policy_gradient_loss
from agents.sampling import Rollout
from agents.training import Batch, Info, Metrics, all_reduce_sum


@dataclass(eq=False)
class ActorCritic(ActorCriticBase):
    """Advantage actor-critic, see this file's docstring."""

    def train(self, rollout: Rollout) -> Metrics:
        """Takes one step on the policy loss plus the value loss."""
        assert rollout.values is not None
        batch = self.batch(rollout)
        metrics = self.backward(batch) | {"grad_norm": self.step()}
        metrics["val/explained_variance"] = self.explained_variance(batch)
        metrics["val/mean"] = float(masked_mean(rollout.values, rollout.mask, all_reduce_sum))
        return metrics

    def policy_loss(self, log_probs: Tensor, batch: Batch) -> tuple[Tensor, Info]:
        """- sum_t log pi(a_t|s_t) A_t."""
        return policy_gradient_loss(log_probs, batch.advantages, batch.rollout.mask), {}
