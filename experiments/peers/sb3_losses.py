"""Stable-Baselines3's PPO on an enumerated batch: its `train`, on a `RolloutBuffer` of one minibatch, both unchanged.

The policy's `evaluate_actions` looks log pi(a_t|s_t) up in the table. `train` calls `backward` itself: the gradient
that it leaves there is what is measured, before it is clipped to `max_grad_norm`. The values of the buffer are the
exact V(s_t), and V is no part of the policy here, so its loss has no gradient. The buffer keeps numbers in float32.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from agents.sampling import Rollout

STEPS = 64  # more than a batch has


class Steps(gym.Env[Any, Any]):
    """Only spaces: an observation is the number of a step of the batch."""

    observation_space = gym.spaces.Discrete(STEPS)
    action_space = gym.spaces.Discrete(STEPS)

    def reset(self, **_: Any) -> Any:
        """Never called by `train`."""
        raise NotImplementedError


class TablePolicy(ActorCriticPolicy):
    """Log-probabilities and values of the steps of a batch."""

    log_probs: Tensor  # [N], with gradient
    steps_values: Tensor  # [N]

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, None]:
        """V, log pi(a|s) and no entropy, of the steps `obs`."""
        steps = obs.long().flatten()
        return self.steps_values[steps], self.log_probs[steps], None


class SB3PPO:
    """The loss of `PPO.train`, gamma = 1.

    Args:
        **settings: of PPO.
    """

    def __init__(self, **settings: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            self.agent: Any = PPO(TablePolicy, Steps(), n_steps=STEPS, n_epochs=1, gamma=1.0, device="cpu", **settings)
        self.agent.set_logger(Logger(None, []))

    def __call__(self, rollout: Rollout, log_probs: Tensor, values: Tensor) -> Tensor:
        """A scalar with the value and the gradient of PPO's loss, see `agents.verification.verify`."""
        agent, policy, mask = self.agent, self.agent.policy, rollout.mask
        policy.log_probs = log_probs[mask].detach().requires_grad_()
        policy.steps_values = values[mask].float()
        agent.rollout_buffer = self.filled(rollout, values)
        agent.batch_size = len(policy.log_probs)
        np.random.seed(0)  # noqa: NPY002, the buffer shuffles by it: sums are rounded alike
        agent.train()
        gradient = policy.log_probs.grad
        loss: Tensor = (
            agent.logger.name_to_value["train/loss"] + (gradient * (log_probs[mask] - policy.log_probs.detach())).sum()
        )
        return loss

    def filled(self, rollout: Rollout, values: Tensor) -> RolloutBuffer:
        """The batch in PPO's buffer, step by step, with the advantages that it computes."""
        mask, agent = rollout.mask, self.agent
        columns = mask.shape[1]
        buffer = RolloutBuffer(
            int(mask.sum()), agent.observation_space, agent.action_space, "cpu", agent.gae_lambda, agent.gamma
        )
        starts = torch.zeros_like(mask)
        starts[:, 0] = True
        numbers = (rollout.input_ids[:, -columns:], rollout.rewards, starts, values, rollout.log_probs)
        for step, (action, reward, start, value, log_prob) in enumerate(zip(*(x[mask] for x in numbers), strict=True)):
            buffer.add(np.array([step]), action.numpy(), reward.numpy(), start.numpy(), value, log_prob)
        buffer.compute_returns_and_advantage(torch.zeros(1), np.array([True]))
        return buffer
