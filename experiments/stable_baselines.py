"""Stable-Baselines3's agents with the interface of `agents.Agent`, so that a trial runs either.

The environment, the KL and the language model as policy come from `agents.sb3`; the algorithms are Stable-Baselines3's,
unmodified.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from tqdm.auto import tqdm

from agents import FORMAT_VERSION, check_range, read_saved
from agents.policy import TransformerPolicy
from agents.sb3 import (
    CausalLMPolicy,
    KLDictRolloutBuffer,
    KLMaskableDictRolloutBuffer,
    MaskableCausalLMPolicy,
    TextVecEnv,
)
from agents.training import Metrics
from textenv import TextVectorEnv, get_mdp


@dataclass(eq=False)
class StableBaselines(ABC):
    """`learn`, `save` and `load` of `agents.Agent`, around an algorithm of Stable-Baselines3.

    A callback gets None as rollout: Stable-Baselines3's buffer may end within a completion.
    """

    initial_policy: TransformerPolicy
    """The policy to start from; a copy is trained."""
    env: Any
    """A text environment, single or batched; its MDP is stepped in a batch of its own."""
    learning_rate: float = 3e-4
    """Adam's step size."""
    n_episodes: int = 64
    """Number of environments in the batch."""
    n_steps: int = 8
    """Tokens of each environment per update."""
    gae_lambda: float = 0.95
    """lambda of GAE: 0 bootstraps with V after one step, 1 never."""
    vf_coef: float = 0.1
    """Weight of the value loss 1/2 (V - target)^2, as in `agents`. Stable-Baselines3's loss has no 1/2; it gets half of
    this weight."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm."""
    normalize_advantage: bool = False
    """Whiten the advantages of a minibatch."""
    seed: int | None = None
    """Seed of prompts, tokens and minibatches, and of the global generators."""

    def __post_init__(self) -> None:
        check_range("n_steps", self.n_steps, 1)
        check_range("gae_lambda", self.gae_lambda, 0, 1)
        check_range("vf_coef", self.vf_coef, 0)
        check_range("max_grad_norm", self.max_grad_norm, 1e-12)
        self.num_updates = 0
        self.algorithm = self.make_algorithm(
            TextVectorEnv(get_mdp(self.env), self.n_episodes, autoreset_mode="SameStep")
        )
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
    def num_timesteps(self) -> int:
        """Number of tokens sampled."""
        return int(self.algorithm.num_timesteps)

    def learn(
        self,
        total_timesteps: int,
        callback: Callable[[Any, Any, Metrics], bool | None] | None = None,
        progress_bar: bool = False,
        reset_num_timesteps: bool = True,
    ) -> Self:
        """Trains on `total_timesteps` more tokens; `callback(agent, None, metrics)` returns False to stop."""
        if total_timesteps < 0:
            raise ValueError(f"total_timesteps must not be negative, got {total_timesteps}.")
        if reset_num_timesteps:
            self.num_updates = 0
        with tqdm(total=total_timesteps, unit="tok", disable=not progress_bar) as bar, suppress(StopLearning):
            self.algorithm.learn(
                total_timesteps,
                callback=UpdateCallback(self, callback, bar),
                log_interval=None,
                reset_num_timesteps=reset_num_timesteps,
            )
        return self

    def save(self, folder: str | PathLike[str]) -> None:
        """Saves the policy as a Hugging Face checkpoint, the settings, and the state that `load` needs."""
        folder = Path(folder)
        self.policy.save_pretrained(folder)
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("initial_policy", "env")}
        counts = {"num_timesteps": self.num_timesteps, "num_updates": self.num_updates}
        (folder / "agent.json").write_text(
            json.dumps({"format_version": FORMAT_VERSION, "settings": settings} | counts, indent=2) + "\n"
        )
        torch.save(self.algorithm.get_parameters(), folder / "training_state.pt")

    @classmethod
    def load(cls, folder: str | PathLike[str], env: Any, device: str = "cpu") -> Self:
        """Returns an agent as it was saved, except for random numbers and unfinished completions."""
        folder = Path(folder)
        saved = read_saved(folder / "agent.json")
        agent = cls(TransformerPolicy.from_pretrained(folder).to(device), env, **saved["settings"])
        state = torch.load(folder / "training_state.pt", map_location=device, weights_only=True)
        agent.algorithm.set_parameters(state, device=device)
        agent.algorithm.num_timesteps, agent.num_updates = saved["num_timesteps"], saved["num_updates"]
        if agent.seed is not None:  # the original seed would sample the first completions again
            agent.algorithm.set_random_seed(agent.seed + agent.num_timesteps)
        return agent


@dataclass(eq=False)
class SB3PPO(StableBaselines):
    """Stable-Baselines3's PPO; the action mask is part of the observation."""

    n_epochs: int = 4
    """Passes over each batch of tokens."""
    batch_size: int | None = None
    """Tokens per minibatch; None: all tokens of the batch."""
    clip_range: float = 0.2
    """eps, the clip range of the probability ratio."""

    def __post_init__(self) -> None:
        check_range("n_epochs", self.n_epochs, 1)
        check_range("batch_size", self.batch_size, 1)
        check_range("clip_range", self.clip_range, 0)
        super().__post_init__()

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


class StopLearning(Exception):
    """The callback returned False.

    Stable-Baselines3's own way to stop would first sample another token in each environment, and later continue without
    that token.
    """


class UpdateCallback(BaseCallback):
    """Calls back after each update: before the next tokens are sampled, and at the end."""

    def __init__(self, agent: StableBaselines, callback: Callable[[Any, Any, Metrics], Any] | None, bar: Any) -> None:
        super().__init__()
        self.agent, self.callback, self.bar = agent, callback, bar
        self.reported = 0
        self.scores: list[float] = []

    def _on_training_start(self) -> None:
        self.reported = self.num_timesteps

    def _on_step(self) -> bool:
        self.scores += [info["score"] for info in self.locals["infos"] if "score" in info]
        return True

    def _on_rollout_start(self) -> None:
        self._report()

    def _on_training_end(self) -> None:
        self._report()

    def _report(self) -> None:
        if self.num_timesteps == self.reported:  # no token was sampled yet
            return
        metrics = {name: float(value) for name, value in self.logger.name_to_value.items()}  # its own, train/...
        if self.scores:
            metrics["objective/scores"] = float(np.mean(self.scores))
        self.agent.num_updates += 1
        self.bar.update(self.num_timesteps - self.reported)
        self.reported, self.scores = self.num_timesteps, []
        if self.callback is not None and self.callback(self.agent, None, metrics) is False:
            raise StopLearning
