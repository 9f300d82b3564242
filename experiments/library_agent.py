"""What agents of other libraries share, so that a trial runs them as ours: settings, the end of an update, files.

The environment, the policy and the evaluation are ours; the learning is the library's, unmodified.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from agents import FORMAT_VERSION, Diverged, check_fields, check_range, find_saved, read_saved
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
from agents.training import (
    HealthMonitor,
    Metrics,
    advice,
    check_finite,
    health_state,
    load_optimizer_tensors,
    optimizer_tensors,
    restore_health,
    reward_metrics,
)
from textenv import EnvLike, TextMDP, get_mdp
from textenv.rewards import TrainerState

Callback = Callable[[Any, Any, Metrics], Any]  # of agent, None and metrics; it returns False to stop


@dataclass(eq=False)
class LibraryAgent(ABC):
    """`save` and `load` of `agents.Agent`, and the end of an update, around an algorithm of another library."""

    needs_values: ClassVar[bool] = False
    """Whether it trains the value head of `policy`."""
    initial_policy: TransformerPolicy
    """The policy to start from; a copy is trained."""
    env: Any
    """A text environment, single or batched."""
    learning_rate: float = 3e-4
    """Adam's step size."""
    n_episodes: int = 64
    """Completions per update."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm."""
    seed: int | None = None
    """Seed of prompts, tokens and minibatches, and of the global generators."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_range("seed", self.seed, 0, 2**32 - 1)  # NumPy's global generator takes no other
        self.num_updates = 0
        self.health = HealthMonitor()

    @property
    @abstractmethod
    def policy(self) -> TransformerPolicy:
        """The language model that is trained."""

    @property
    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of its parameters."""

    @property
    @abstractmethod
    def num_timesteps(self) -> int:
        """Number of tokens sampled."""

    @abstractmethod
    def learn(
        self,
        total_timesteps: int,
        callback: Callback | None = None,
        progress_bar: bool = False,
        reset_num_timesteps: bool = True,
    ) -> Self:
        """Trains on `total_timesteps` more tokens; `callback(agent, None, metrics)` returns False to stop.

        A callback gets None as rollout.

        Raises:
            ValueError: total_timesteps is no whole number in 0 .. 10^15.
            Diverged: the policy is not finite.
        """

    @abstractmethod
    def continue_from(self, num_timesteps: int) -> None:
        """Counts tokens from here on, and draws other random numbers than a new agent."""

    @property
    def mdp(self) -> TextMDP:
        """The environment's MDP."""
        return get_mdp(self.env)

    def check_finite(self) -> None:
        """Raises `Diverged` if the policy is not finite."""
        try:
            check_finite(self.policy, self.mdp)
        except Diverged as error:
            raise Diverged(f"Training has diverged in update {self.num_updates + 1}: {error} {advice(self)}") from error

    def end_update(self, metrics: Metrics, row: Metrics, callback: Callback | None) -> bool:
        """Counts an update, logs what reward functions log, warns, and calls back; returns whether to continue.

        Args:
            metrics: the metrics to log; those that are not finite are left out.
            row: the metrics by the names of our agents' metrics, which the warnings are about.
            callback: see `learn`.
        """
        self.num_updates += 1
        training = self.mdp.training
        training.state = TrainerState(global_step=self.num_updates, num_input_tokens_seen=self.num_timesteps)
        logged = reward_metrics(self.mdp)
        metrics = {name: value for name, value in (metrics | logged).items() if math.isfinite(value)}
        metrics |= self.health.observe(self, row | logged)
        if callback is not None and callback(self, None, metrics) is False:
            return False
        training.take_metrics()  # what an evaluation has logged
        return True

    def save(self, folder: str | PathLike[str], keep: int = 1, attach: dict[str, Any] | None = None) -> None:
        """Saves the policy as a Hugging Face checkpoint, the settings, and Adam's state; see `Agent.save`."""
        settings = {name: getattr(self, name) for name in self.hyperparameters()}
        content = {"format_version": FORMAT_VERSION, "algorithm": type(self).__name__, "settings": settings}
        health, probe = health_state(self.health)
        content |= {"num_timesteps": self.num_timesteps, "num_updates": self.num_updates, "health": health}

        def fill(new: Path) -> None:
            write_policy(self.policy, new)
            write_json(new / "agent.json", content)
            tensors = optimizer_tensors(self.policy, self.optimizer, self._optimized())
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
        load_optimizer_tensors(agent.policy, agent.optimizer, agent._optimized(), tensors, path)
        if tensors:
            raise DamagedFile(f"{path} holds {min(tensors)!r:.100}, which no parameter of the policy has.")
        agent.num_updates = saved["num_updates"]
        agent.continue_from(saved["num_timesteps"])
        return agent

    @classmethod
    def hyperparameters(cls) -> list[str]:
        """Names of the settings, without policy and env."""
        return [f.name for f in fields(cls) if f.name not in ("initial_policy", "env")]

    def _optimized(self) -> list[torch.Tensor]:
        """The parameters that Adam steps: the language model's."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
