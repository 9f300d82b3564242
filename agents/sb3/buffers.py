"""Rollout buffers that add the policy's half of the KL to the reward."""

from __future__ import annotations

from typing import Any

import numpy as np
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from torch import Tensor

from agents.sb3.vec_env import TextObservationSpace


class KLRewardBuffer:
    """Mixin for a rollout buffer: adds `- beta log pi(a|s)` to the reward of each step, under the behaviour policy.

    Args:
        kl_coef: beta, by default the environment's. Pass it as `rollout_buffer_kwargs={"kl_coef": beta}` where a
            wrapper (`FlatTokens`) hides the observation space of `TextVecEnv`.
    """

    observation_space: Any

    def __init__(self, *args: Any, kl_coef: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        beta = getattr(self.observation_space, "kl_coef", kl_coef)
        if beta is None:
            raise TypeError(
                "The buffer needs beta, which only TextVecEnv has in its observation space, got "
                f"{self.observation_space}: pass rollout_buffer_kwargs={{'kl_coef': ...}}."
            )
        if kl_coef is not None and kl_coef != beta:
            raise ValueError(f"The environment's kl_coef is {beta}, the buffer's {kl_coef}: leave the buffer's out.")
        self.kl_coef: float = beta

    def add(
        self, obs: Any, action: Any, reward: Any, episode_start: Any, value: Tensor, log_prob: Tensor, **more: Any
    ) -> None:
        """Adds a step with the whole reward r_t; arguments are the base class's."""
        policy_log_prob = log_prob.detach().cpu().numpy().reshape(np.shape(reward))
        super().add(obs, action, reward - self.kl_coef * policy_log_prob, episode_start, value, log_prob, **more)
        if isinstance(self.observation_space, TextObservationSpace):
            self.observation_space.policy_kl_pending = False


class KLRolloutBuffer(KLRewardBuffer, RolloutBuffer):
    """For PPO and A2C on flat observations."""


class KLDictRolloutBuffer(KLRewardBuffer, DictRolloutBuffer):
    """For PPO and A2C on `Dict` observations."""


class KLMaskableRolloutBuffer(KLRewardBuffer, MaskableRolloutBuffer):
    """For MaskablePPO on flat observations."""


class KLMaskableDictRolloutBuffer(KLRewardBuffer, MaskableDictRolloutBuffer):
    """For MaskablePPO on `Dict` observations."""
