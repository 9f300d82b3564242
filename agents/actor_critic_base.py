"""The base of ActorCritic and PPO: training of V, and the advantages that V gives.

V(s) = E[G_t | s_t = s]                                                      trained by MSE on the reward to go
A_t  = sum_l (gamma lambda)^l (r_{t+l} + gamma V(s_{t+l+1}) - V(s_{t+l}))    GAE (Schulman et al. 2016)
loss = policy loss + vf_coef E[ 1/2 sum_t (V(s_t) - G_t)^2 ]
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from agents.agent import Agent
from agents.functional import explained_variance, gae, masked_whiten, policy_diagnostics, reward_to_go, value_loss
from agents.kl_in_loss import add_kl
from agents.sampling import Rollout
from agents.training import Batch, Info, all_reduce_sum


@dataclass(eq=False)
class ActorCriticBase(Agent):
    """An agent whose advantages come from V, see this file's docstring."""

    gae_lambda: float = 0.95
    """lambda of GAE: 0 bootstraps from V after one step, 1 never."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    vf_learning_rate: float | None = None
    """Step size of the value head and a separate critic; None is learning_rate. The value head starts at zero: the
    small steps that suit a pretrained model hardly train it."""
    value_warmup: int = 0
    """The first updates, counted by num_updates, train only the value head and a separate critic, so that V is useful
    before the policy is trained with its advantages."""
    normalize_advantage: bool = False
    """Whiten the advantages over the real tokens of a batch."""

    def frozen_parameters(self) -> Iterable[Tensor]:
        """Those of the policy's model in the first `value_warmup` updates."""
        return self.policy.model.parameters() if self.num_updates < self.value_warmup else ()

    def batch(self, rollout: Rollout) -> Batch:
        """The completions with their advantages A_t and value targets G_t."""
        assert rollout.values is not None
        returns = reward_to_go(rollout.rewards, rollout.mask, self.gamma)
        advantages = gae(rollout.rewards, rollout.values, rollout.mask, self.gamma, self.gae_lambda)
        if self.normalize_advantage:
            advantages = masked_whiten(advantages, rollout.mask, total=all_reduce_sum)
        return Batch(rollout, rollout.weighted(advantages), returns)

    @abstractmethod
    def policy_loss(self, log_probs: Tensor, batch: Batch) -> tuple[Tensor, Info]:
        """Policy loss from log pi(a_t|s_t), [B, T], and metrics."""

    def critic_loss(self, values: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        """Value loss from V(s_t) and G_t, [B, T] each: half the squared error."""
        return value_loss(values, returns, rollout.mask)

    def losses(self, batch: Batch) -> Iterator[tuple[Tensor, Info]]:
        """Yields the losses of some completions, to be added up, each with metrics.

        A separate critic runs after the backward pass of the policy loss, so that the activations of only one network
        are in memory at a time.
        """
        rollout, shared = batch.rollout, self.policy.critic is None
        evaluation = self.evaluate_actions(rollout, values=shared)
        loss, info = self.policy_loss(evaluation.log_probs, batch)
        info |= policy_diagnostics(loss, evaluation.log_probs, rollout.log_probs, rollout.mask)
        loss, info = add_kl(self, loss, info, rollout, evaluation)
        if evaluation.values is not None:
            critic_loss = self.critic_loss(evaluation.values, batch.returns, rollout)
            yield loss + self.vf_coef * critic_loss, info | {"loss/value_avg": critic_loss.detach()}
        else:
            yield loss, info
            critic_loss = self.critic_loss(self.evaluate_states(rollout), batch.returns, rollout)
            yield self.vf_coef * critic_loss, {"loss/value_avg": critic_loss.detach()}

    def explained_variance(self, batch: Batch) -> float:
        """The explained variance of V before the update, over the tokens of all ranks."""
        assert batch.rollout.values is not None
        return float(explained_variance(batch.rollout.values, batch.returns, batch.rollout.mask, all_reduce_sum))
