"""What agents with a critic share: how V is trained, and what it makes of the rewards.

V(s) = E[G_t | s_t = s]                                                      learned, by MSE on the reward to go
A_t  = sum_l (gamma lambda)^l (r_{t+l} + gamma V(s_{t+l+1}) - V(s_{t+l}))    GAE (Schulman et al. 2016)
loss = policy loss + vf_coef E[ 1/2 sum_t (V(s_t) - G_t)^2 ]                 what an update goes down
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents.agent import Agent, check_range
from agents.functional import gae, masked_whiten, reward_to_go, value_loss
from agents.sampling import Rollout
from agents.training import Info, all_reduce_sum


@dataclass(eq=False)
class ActorCriticBase(Agent, ABC):
    """An agent whose advantages come from V; see this file's docstring."""

    gae_lambda: float = 0.95
    """0 trusts V after one step, 1 not at all."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    vf_learning_rate: float | None = None
    """Adam's step size for the value head, and for a separate critic; None is learning_rate. A head begins at zero: the
    small steps that a pretrained model wants take it nowhere."""
    value_warmup: int = 0
    """Updates at first (of a `learn` that counts from zero) that train the value head, and a separate critic, alone, so
    that advantages mean something."""
    normalize_advantage: bool = False
    """Whiten the advantages of a batch, over its real tokens."""

    def __post_init__(self) -> None:
        check_range("gae_lambda", self.gae_lambda, 0, 1)
        check_range("vf_coef", self.vf_coef, 0)
        check_range("vf_learning_rate", self.vf_learning_rate, 0)
        check_range("value_warmup", self.value_warmup, 0)
        super().__post_init__()

    def step(self) -> float:
        """As any agent's; in the first `value_warmup` updates the policy stays where it is."""
        if self.num_updates < self.value_warmup:
            for master in self.master_weights.masters_of(self.policy.model.parameters()):
                master.grad = None
        return super().step()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The policy's model, and the critic with its own step size."""
        parameters: dict[bool, list[Any]] = {True: [], False: []}  # whether they are the model's
        for name, parameter in self.policy.named_parameters():
            if parameter.requires_grad:
                parameters[name.startswith("model.")].append(parameter)
        rate = self.learning_rate if self.vf_learning_rate is None else self.vf_learning_rate
        return [{"params": parameters[True], "lr": self.learning_rate}, {"params": parameters[False], "lr": rate}]

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """A_t and the value head's target G_t, [B, T] each."""
        assert rollout.values is not None
        returns = reward_to_go(rollout.rewards, rollout.mask, self.gamma)
        advantages = gae(rollout.rewards, rollout.values, rollout.mask, self.gamma, self.gae_lambda)
        if self.normalize_advantage:
            advantages = masked_whiten(advantages, rollout.mask, total=all_reduce_sum)
        return advantages, returns

    @abstractmethod
    def policy_loss(self, log_probs: Tensor, rollout: Rollout, advantages: Tensor) -> tuple[Tensor, Info]:
        """What the agent makes of log pi(a_t|s_t) and A_t, [B, T] each; and what is worth watching."""

    def critic_loss(self, values: Tensor, rollout: Rollout, returns: Tensor) -> Tensor:
        """What it makes of V(s_t) and G_t, [B, T] each: half the squared error."""
        return value_loss(values, returns, rollout.mask)

    def losses(self, rollout: Rollout, advantages: Tensor, returns: Tensor) -> Iterator[tuple[Tensor, Info]]:
        """The loss of some answers, and what is worth watching.

        One pass says pi and V where they share a trunk. A separate critic reads when the policy's part is done
        with: of two networks one at a time is in memory, and in a CPU's caches.
        """
        texts = (rollout.input_ids, rollout.attention_mask, rollout.num_tokens)
        shared = self.policy.critic is None
        log_probs, values = self.learner(*texts, rollout.action_mask, values=shared)
        loss, info = self.policy_loss(log_probs, rollout, advantages)
        info["loss/policy_avg"] = loss.detach()
        if not shared:
            yield loss, info
            loss, info, values = torch.zeros_like(loss), {}, self.learner(*texts, method="values")
        critic_loss = self.critic_loss(values, rollout, returns)
        yield loss + self.vf_coef * critic_loss, info | {"loss/value_avg": critic_loss.detach()}
