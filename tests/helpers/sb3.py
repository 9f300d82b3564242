"""Environments and rollouts of Stable-Baselines3 for the tests."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from stable_baselines3.common.callbacks import BaseCallback

from agents.sb3 import KLDictRolloutBuffer, TextVecEnv

TOY = {"vocab_size": 3, "max_new_tokens": 3, "num_prompts": 2, "kl_coef": 0.5}
KL_BUFFER = {"rollout_buffer_class": KLDictRolloutBuffer}


def vec(env_id: str = "textenv/Toy-v0", num_envs: int = 4, **arguments: Any) -> TextVecEnv:
    """A batched environment for Stable-Baselines3."""
    return TextVecEnv(gym.make_vec(env_id, num_envs=num_envs, autoreset_mode="SameStep", **arguments))


class KeepRollout(BaseCallback):
    """Keeps the first rollout of the buffer: arrays [n_steps, n_envs]."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if not hasattr(self, "kept"):
            buffer = self.locals["rollout_buffer"]
            names = ("rewards", "actions", "log_probs", "episode_starts", "values")
            self.kept = {name: getattr(buffer, name).copy() for name in names}
            arrays = buffer.observations if isinstance(buffer.observations, dict) else {"flat": buffer.observations}
            self.kept |= {name: values.copy() for name, values in arrays.items()}
