"""Stable-Baselines3's agents with the interface of `agents.Agent`, so that a trial runs either.

The environment, the KL and the language model as policy come from `agents.sb3`; the algorithms are Stable-Baselines3's,
unmodified.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.logger import Logger
from tqdm.auto import tqdm

from agents import check_timesteps
from agents.policy import TransformerPolicy
from agents.sb3 import (
    CausalLMPolicy,
    KLDictRolloutBuffer,
    KLMaskableDictRolloutBuffer,
    MaskableCausalLMPolicy,
    TextVecEnv,
)
from agents.training import HealthMonitor
from experiments.library_agent import Callback, LibraryAgent
from experiments.update_callback import StepFilter, StopLearning, UpdateCallback
from textenv import TextVectorEnv, get_mdp


@dataclass(eq=False)
class StableBaselines(LibraryAgent):
    """An algorithm of Stable-Baselines3, whose batch is tokens: its buffer may end within a completion.

    The MDP of the environment is stepped in a batch of its own.
    """

    needs_values: ClassVar[bool] = True

    n_episodes: int = 64
    """Number of environments in the batch."""
    n_steps: int = 8
    """Tokens of each environment per update."""
    gae_lambda: float = 0.95
    """lambda of GAE: 0 bootstraps with V after one step, 1 never."""
    vf_coef: float = 0.1
    """Weight of the value loss 1/2 (V - target)^2, as in `agents`. Stable-Baselines3's loss has no 1/2; it gets half of
    this weight."""
    normalize_advantage: bool = False
    """Whiten the advantages of a minibatch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalize_advantage and min(self.n_steps * self.n_episodes, getattr(self, "batch_size", None) or 2) < 2:
            raise ValueError("normalize_advantage needs at least two tokens in a minibatch, got batch_size=1.")
        self.algorithm = self.make_algorithm(
            TextVectorEnv(get_mdp(self.env), self.n_episodes, autoreset_mode="SameStep")
        )
        self.step_filter = StepFilter(self.optimizer)
        self.algorithm.set_logger(Logger(None, output_formats=[]))  # the default logger creates folders

    @abstractmethod
    def make_algorithm(self, envs: TextVectorEnv) -> Any:
        """Returns the algorithm of Stable-Baselines3."""

    def shared_arguments(self, envs: TextVectorEnv, buffer: type[Any]) -> dict[str, Any]:
        """The arguments that all three algorithms take."""
        names = ("learning_rate", "n_steps", "gae_lambda", "max_grad_norm", "normalize_advantage", "seed")
        return {name: getattr(self, name) for name in names} | {
            "gamma": 1.0,
            "vf_coef": self.vf_coef / 2,
            "rollout_buffer_class": buffer,
            "policy_kwargs": {"language_model": self.initial_policy},
            "device": self.initial_policy.device,
        }

    @property
    def policy(self) -> TransformerPolicy:
        """The language model that is trained."""
        model: TransformerPolicy = self.algorithm.policy.features_extractor.language_model
        return model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Adam, which the algorithm has made."""
        optimizer: torch.optim.Optimizer = self.algorithm.policy.optimizer
        return optimizer

    @property
    def num_timesteps(self) -> int:
        """Number of tokens sampled."""
        return int(self.algorithm.num_timesteps)

    def learn(
        self,
        total_timesteps: int,
        callback: Callback | None = None,
        progress_bar: bool = False,
        reset_num_timesteps: bool = True,
    ) -> Self:
        """Trains on `total_timesteps` more tokens, see `LibraryAgent.learn`.

        Raises:
            Diverged: the policy is not finite, or loss or gradient were not in several updates in a row.
        """
        total_timesteps = check_timesteps(total_timesteps)
        if reset_num_timesteps:
            self.num_updates = 0
            self.health = HealthMonitor()
        with tqdm(total=total_timesteps, unit="tok", disable=not progress_bar) as bar, suppress(StopLearning):
            try:
                self.algorithm.learn(
                    total_timesteps,
                    callback=UpdateCallback(self, callback, bar),
                    log_interval=None,
                    reset_num_timesteps=reset_num_timesteps,
                )
            except ValueError:  # of torch.distributions, where probabilities are nan
                self.check_finite()
                raise
        return self

    def continue_from(self, num_timesteps: int) -> None:
        """See `LibraryAgent`."""
        self.algorithm.num_timesteps = num_timesteps
        if self.seed is not None:  # the original seed would sample the first completions again
            self.algorithm.set_random_seed((self.seed + num_timesteps) % 2**32)


@dataclass(eq=False)
class SB3PPO(StableBaselines):
    """Stable-Baselines3's PPO; the action mask is part of the observation."""

    n_epochs: int = 4
    """Passes over each batch of tokens."""
    batch_size: int | None = None
    """Tokens per minibatch; None: all tokens of the batch."""
    clip_range: float = 0.2
    """eps, the clip range of the probability ratio."""

    def make_algorithm(self, envs: TextVectorEnv) -> Any:
        """Returns PPO."""
        arguments = self.shared_arguments(envs, KLDictRolloutBuffer) | self.epoch_arguments()
        return PPO(CausalLMPolicy, TextVecEnv(envs, mask_in_observation=not envs.mdp.full_support), **arguments)

    def epoch_arguments(self) -> dict[str, Any]:
        """The arguments that PPO takes and A2C does not."""
        batch_size = self.batch_size or self.n_steps * self.n_episodes
        return {"n_epochs": self.n_epochs, "batch_size": batch_size, "clip_range": self.clip_range}


@dataclass(eq=False)
class SB3MaskablePPO(SB3PPO):
    """sb3-contrib's MaskablePPO; it gets the action mask from the environment's `action_masks`."""

    def make_algorithm(self, envs: TextVectorEnv) -> Any:
        """Returns MaskablePPO."""
        arguments = self.shared_arguments(envs, KLMaskableDictRolloutBuffer) | self.epoch_arguments()
        return MaskablePPO(MaskableCausalLMPolicy, TextVecEnv(envs), **arguments)


@dataclass(eq=False)
class SB3A2C(StableBaselines):
    """Stable-Baselines3's A2C, with Adam as all other agents; the action mask is part of the observation."""

    def make_algorithm(self, envs: TextVectorEnv) -> Any:
        """Returns A2C."""
        arguments = self.shared_arguments(envs, KLDictRolloutBuffer) | {"use_rms_prop": False}
        return A2C(CausalLMPolicy, TextVecEnv(envs, mask_in_observation=not envs.mdp.full_support), **arguments)
