"""Stable-Baselines3's agents with the interface of `agents.Agent`, so that a trial runs either.

The environment, the KL and the language model as policy come from `agents.sb3`; the algorithms are Stable-Baselines3's,
unmodified.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.logger import Logger
from tqdm.auto import tqdm

from agents import FORMAT_VERSION, check_fields, check_range, check_timesteps, find_saved, read_saved
from agents.files import (
    DamagedFile,
    check_names,
    check_types,
    read_tensors,
    resolved,
    write_folder,
    write_json,
    write_tensors,
)
from agents.policy import STALE, TransformerPolicy, write_policy
from agents.sb3 import (
    CausalLMPolicy,
    KLDictRolloutBuffer,
    KLMaskableDictRolloutBuffer,
    MaskableCausalLMPolicy,
    TextVecEnv,
)
from agents.training import (
    HealthMonitor,
    Metrics,
    health_state,
    load_optimizer_tensors,
    optimizer_tensors,
    restore_health,
)
from experiments.update_callback import StepFilter, StopLearning, UpdateCallback, check_agent
from textenv import EnvLike, TextMDP, TextVectorEnv, get_mdp


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
        check_fields(self)
        check_range("seed", self.seed, 0, 2**32 - 1)  # NumPy's global generator takes no other
        if self.normalize_advantage and min(self.n_steps * self.n_episodes, getattr(self, "batch_size", None) or 2) < 2:
            raise ValueError("normalize_advantage needs at least two tokens in a minibatch, got batch_size=1.")
        self.num_updates = 0
        self.health = HealthMonitor()
        self.algorithm = self.make_algorithm(
            TextVectorEnv(get_mdp(self.env), self.n_episodes, autoreset_mode="SameStep")
        )
        self.step_filter = StepFilter(self.algorithm.policy.optimizer)
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
    def mdp(self) -> TextMDP:
        """The environment's MDP."""
        return get_mdp(self.env)

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
        """Trains on `total_timesteps` more tokens; `callback(agent, None, metrics)` returns False to stop.

        Raises:
            ValueError: total_timesteps is no whole number in 0 .. 10^15.
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
                check_agent(self)
                raise
        return self

    def save(self, folder: str | PathLike[str], keep: int = 1, attach: dict[str, Any] | None = None) -> None:
        """Saves the policy as a Hugging Face checkpoint, the settings, and Adam's state; see `Agent.save`."""
        settings = {name: getattr(self, name) for name in self.hyperparameters()}
        content = {"format_version": FORMAT_VERSION, "algorithm": type(self).__name__, "settings": settings}
        health, probe = health_state(self.health)
        content |= {"num_timesteps": self.num_timesteps, "num_updates": self.num_updates, "health": health}

        def fill(new: Path) -> None:
            write_policy(self.policy, new)
            write_json(new / "agent.json", content)
            tensors = optimizer_tensors(self.policy, self.algorithm.policy.optimizer, self._optimized())
            write_tensors(new / "training_state.safetensors", tensors | probe)

        write_folder(resolved(folder), fill, keep, attach, STALE)

    @classmethod
    def load(
        cls,
        folder: str | PathLike[str],
        env: EnvLike,
        device: str = "cpu",
        trust_remote_code: bool = False,
        **settings: object,
    ) -> Self:
        """Returns an agent as it was saved, except for random numbers and unfinished completions.

        Only with `trust_remote_code` does the folder's model run code of its own. `settings` override saved ones.

        Raises:
            DamagedFile: a file of the folder is missing, was changed, or holds something else than an agent's.
            ValueError: the folder holds no agent, one of another class, or one of another format.
        """
        found = find_saved(Path(folder), "agent.json")
        if found is None:
            raise ValueError(f"{str(folder)!r} holds no saved agent (no agent.json); pass the folder given to save().")
        path = found / "agent.json"
        saved = read_saved(path)
        if saved.get("algorithm") != cls.__name__:
            raise ValueError(f"{path} must be that of a {cls.__name__}, got {saved.get('algorithm')!r:.100}.")
        check_types(path, saved, {"settings": dict, "num_timesteps": int, "num_updates": int, "health": dict})
        check_names(path, "settings", saved["settings"], cls.hyperparameters())
        policy = TransformerPolicy.from_pretrained(found, trust_remote_code=trust_remote_code).to(device)
        agent = cls(policy, env, **(saved["settings"] | settings))
        path = found / "training_state.safetensors"
        tensors = read_tensors(path)
        restore_health(agent, saved["health"], tensors, found)
        load_optimizer_tensors(agent.policy, agent.algorithm.policy.optimizer, agent._optimized(), tensors, path)
        if tensors:
            raise DamagedFile(f"{path} holds {min(tensors)!r:.100}, which no parameter of the policy has.")
        agent.algorithm.num_timesteps, agent.num_updates = saved["num_timesteps"], saved["num_updates"]
        if agent.seed is not None:  # the original seed would sample the first completions again
            agent.algorithm.set_random_seed((agent.seed + agent.num_timesteps) % 2**32)
        return agent

    @classmethod
    def hyperparameters(cls) -> list[str]:
        """Names of the settings, without policy and env."""
        return [f.name for f in fields(cls) if f.name not in ("initial_policy", "env")]

    def _optimized(self) -> list[torch.Tensor]:
        """The parameters that Adam steps: the language model's."""
        return [parameter for group in self.algorithm.policy.optimizer.param_groups for parameter in group["params"]]


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
