"""The base of all agents: learn, predict, save and load, with the interface of Stable-Baselines3."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from agents.checkpoint import load_agent, save_agent
from agents.checks import check_copy, check_external, check_mdp, check_settings
from agents.files import DamagedFile, JsonObject, resolved
from agents.policy import ActionEvaluation, FullEvaluation, TransformerPolicy
from agents.predict import predict_tokens
from agents.ranges import check_timesteps
from agents.sampling import (
    Rollout,
    Sampler,
    collect,
    collect_external,
    is_external,
    new_generator,
    reference_distributions,
    sample,
)
from agents.settings import AgentSettings
from agents.training import (
    Batch,
    HealthMonitor,
    Info,
    Metrics,
    Optimization,
    StepGuard,
    broadcast_parameters,
    compute_gradients,
    default_learning_rate,
    gather_objects,
    is_pretrained,
    per_rank,
    rank,
    rank_seed,
)
from agents.update import update
from textenv import EnvLike, TextMDP, get_mdp


@dataclass(eq=False)
class Agent(AgentSettings, ABC):
    """Base class of agents: sample completions with the current policy, train on them, repeat.

    A timestep is a token. `learn` collects batches of `n_episodes` whole completions; `train` defines each agent's
    update. With several ranks (agents/training/ranks.py), each rank creates the agent; all start from the policy of
    rank 0 and train the same one.
    """

    needs_values: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_settings(self)
        self.kl_coef: float | None = None  # beta, where kl_target adapts it; None is the task's
        self.sampler: Sampler = sample  # samples the completions; may be replaced before `learn`
        if is_external(self.env):
            check_external(self)
        elif (mdp := self.mdp) is not None:
            check_mdp(self, mdp)
            if self.kl_target is not None:
                self.kl_coef = mdp.kl_coef
        if self.env is not None:
            broadcast_parameters(self.policy.parameters())
        if self.learning_rate is None:
            pretrained = is_pretrained(self.policy, self.mdp)
            self.learning_rate = default_learning_rate(pretrained, self.policy.has_adapter)
        critic_rate = getattr(self, "vf_learning_rate", None)  # of agents with V
        self.optimization = Optimization(self.policy, self.optimizer, self.learning_rate, critic_rate)
        self.generator = new_generator(self.policy.device, rank_seed(self.seed))
        self.num_timesteps = self.num_updates = 0
        self.step_guard, self.health = StepGuard(), HealthMonitor()

    @property
    def mdp(self) -> TextMDP | None:
        """The environment's MDP; None without an environment, and for one of another library."""
        return None if self.env is None or is_external(self.env) else get_mdp(self.env)

    @property
    def current_kl_coef(self) -> float:
        """beta, the coefficient of the KL: as adapted to `kl_target`, or the task's; 0 where there is no reference."""
        if self.kl_coef is not None:
            return self.kl_coef
        return 0.0 if self.mdp is None else self.mdp.kl_coef

    @abstractmethod
    def train(self, rollout: Rollout) -> Metrics:
        """Updates the policy by `backward` and `step`, by `run_epochs` or `take_steps`; returns the metrics to log.

        `rollout` is that of `prepare` in agents/preparation.py.
        """

    def learn(
        self,
        total_timesteps: int,
        callback: Callable[[Any, Rollout, Metrics], bool | None] | None = None,
        progress_bar: bool = False,
        reset_num_timesteps: bool = True,
    ) -> Self:
        """Collects and trains until at least `total_timesteps` more tokens are sampled; the last batch is completed.

        Args:
            total_timesteps: tokens to sample in this call.
            callback: called after each update with agent, rollout and metrics; if it returns False on any rank,
                learning stops on all ranks.
            progress_bar: show a progress bar (on rank 0).
            reset_num_timesteps: count timesteps and updates from zero; False continues the counts of the last call.

        Raises:
            ValueError: total_timesteps is no whole number in 0 .. 10^15.
            Diverged: the policy cannot sample, or several optimizer steps in a row could not be taken.
        """
        total_timesteps = check_timesteps(total_timesteps)
        if reset_num_timesteps:
            self.num_timesteps = self.num_updates = 0
            self.step_guard, self.health = StepGuard(), HealthMonitor()
        total_timesteps += self.num_timesteps
        hidden = not progress_bar or rank() > 0
        with tqdm(total=total_timesteps, initial=self.num_timesteps, unit="tok", disable=hidden) as bar:
            while self.num_timesteps < total_timesteps:
                rollout, metrics = update(self, total_timesteps)
                bar.update(self.num_timesteps - bar.n)
                shown = [name for name in ("scores", "kl") if f"objective/{name}" in metrics]
                bar.set_postfix({name: f"{metrics[f'objective/{name}']:.3g}" for name in shown})
                if callback is not None and any(gather_objects(callback(self, rollout, metrics) is False)):
                    break
        return self

    def distribute(self, wrap: Callable[[TransformerPolicy], nn.Module]) -> None:
        """Computes losses with `wrap(policy)` from now on, for example a sharded copy (`agents.training.shard`).

        Each optimizer step copies the trained weights back to the policy, which samples and is evaluated. With whole
        weights on each rank no wrapper such as DistributedDataParallel is needed: `backward` averages the gradients.

        Raises:
            ValueError: the policy itself was sharded, or a copy would start without the optimizer's state.
        """
        learner = wrap(self.policy)
        check_copy(self.optimization, learner)
        self.optimization.learner = learner

    def collect(self) -> Rollout:
        """Samples `n_episodes` completions with the current policy; each rank samples its share."""
        count = per_rank(self.n_episodes)
        if is_external(self.env):
            return collect_external(
                self.env, self.policy, count, generator=self.generator, gamma=self.gamma, values=self.needs_values
            )
        return collect(
            self.env,
            self.policy,
            count,
            num_generations=self.num_generations,
            generator=self.generator,
            values=self.needs_values,
            kl_coef=self.kl_coef,
            sampler=self.sampler,
        )

    def trained_rows(self, rollout: Rollout) -> Tensor:
        """The completions to train on, bool [B]: those that are not skipped.

        An agent that compares the completions of a group leaves out groups with fewer than two of them.
        """
        return rollout.valid

    @abstractmethod
    def losses(self, batch: Batch) -> Iterable[tuple[Tensor, Info]]:
        """Returns the losses of some completions, means per completion to be added up, each with metrics.

        Metrics are scalar tensors; `METRICS` in agents/training/reduction.py has how each is reduced. `add_kl` in
        agents/kl_in_loss.py adds the KL to the policy loss where the settings say so.
        """

    def evaluate_actions(self, rollout: Rollout, values: bool = False) -> ActionEvaluation | FullEvaluation:
        """Returns log pi(a_t|s_t), and with `values` V(s_t), [B, T] each, with gradients.

        Where the loss has the exact KL, also log pi of all tokens, unless gradients are off.
        """
        inputs = (rollout.input_ids, rollout.attention_mask, rollout.num_tokens, rollout.action_mask)
        exact = self.kl_in == "loss" and self.kl_loss == "exact" and torch.is_grad_enabled()
        more = {"method": "evaluate_all_actions"} if exact else {}
        evaluation: ActionEvaluation | FullEvaluation = self.optimization.learner(
            *inputs, values=values, prefix=rollout.prefix, **more
        )
        return evaluation

    def evaluate_reference(self, rollout: Rollout) -> Tensor:
        """Returns log pi_ref of all tokens, [B, T, V]."""
        assert self.mdp is not None
        inputs = (rollout.input_ids, rollout.attention_mask, rollout.num_tokens, rollout.prefix)
        return reference_distributions(self.mdp, *inputs)

    def evaluate_states(self, rollout: Rollout) -> Tensor:
        """Returns V(s_t) of a separate critic, [B, T], with gradients."""
        inputs = (rollout.input_ids, rollout.attention_mask, rollout.num_tokens, rollout.prefix)
        values: Tensor = self.optimization.learner(*inputs, method="values")
        return values

    def backward(self, batch: Batch, rows: Tensor | None = None) -> Metrics:
        """Computes the gradient of the losses of a minibatch, see `compute_gradients`; `rows` (int64) None is all."""
        return compute_gradients(self, batch, rows)

    def step(self) -> float:
        """Takes an optimizer step if loss and gradient are finite; returns the gradient's norm before it was scaled.

        Raises:
            Diverged: several steps in a row could not be taken.
        """
        norm = self.optimization.gradient_norm()
        if self.step_guard.passes(self, norm):
            self.optimization.clip_gradients(self.max_grad_norm)
            self.optimization.step()
        return norm

    def frozen_parameters(self) -> Iterable[Tensor]:
        """Parameters of the policy that this update leaves unchanged."""
        return ()

    def own_state(self) -> dict[str, Tensor]:
        """What resuming needs of this rank besides policy, optimizer and random generator, by name: a replay, say."""
        return {}

    def restore_own_state(self, tensors: dict[str, Tensor], path: Path) -> None:
        """Restores what `own_state` returned on this rank; not called where the world size is another.

        Raises:
            DamagedFile: the tensors, of the file `path`, are others.
        """
        if tensors:
            raise DamagedFile(f"{path} holds {min(tensors)!r:.100}, which {type(self).__name__} does not have.")

    def predict(
        self,
        observation: dict[str, Any],
        state: object = None,
        episode_start: object = None,
        deterministic: bool = False,
        action_masks: object = None,
    ) -> tuple[Any, Any]:
        """Returns the next token of one observation (arrays [L]) or of a batch ([B, L]).

        `action_masks` (bool [V] or [B, V]) are the allowed tokens; the default is the observation's `action_mask`, or
        else the reference's support in the agent's environment. `state` and `episode_start` are not used.

        Returns:
            `(action, state)`; the most likely token if `deterministic`, else one sampled from pi.
        """
        generator = None if deterministic else self.generator
        return predict_tokens(self.policy, self.mdp, observation, action_masks, generator), state

    @classmethod
    def hyperparameters(cls) -> list[str]:
        """Names of the settings, without policy and env."""
        return [f.name for f in fields(cls) if f.name not in ("policy", "env")]

    def save(self, folder: str | PathLike[str], keep: int = 1, attach: JsonObject | None = None) -> None:
        """Writes the agent to a folder, see agents/checkpoint.py. Every rank calls it; rank 0 writes.

        A crash leaves the earlier content of the folder or the new one. Files of others in the folder are kept if they
        have other names than those of a checkpoint, which are in agents/checkpoint.py: `config.json`, `agent.json`,
        weights and files of tokenizers, for example, are replaced, whoever wrote them.

        Args:
            folder: the folder.
            keep: how many versions to keep: FOLDER, and the earlier FOLDER.1, FOLDER.2, ...
            attach: further content of its `manifest.json`.

        Raises:
            StorageError: the disk is full or cannot be written.
            ValueError: the folder has a `manifest.json` of another program, or FOLDER.1, ... is no version of it.
        """
        save_agent(self, resolved(folder), keep, attach)

    @classmethod
    def load(
        cls,
        folder: str | PathLike[str],
        env: EnvLike | None = None,
        device: str = "cpu",
        wrap: Callable[[TransformerPolicy], nn.Module] | None = None,
        trust_remote_code: bool = False,
        **settings: object,
    ) -> Self:
        """Loads a saved agent; `learn(..., reset_num_timesteps=False)` resumes its training.

        `sampler` is not saved: set it again if it was replaced.

        Args:
            folder: the folder given to `save`.
            env: a text environment; None for an agent that only predicts.
            device: the device of the policy.
            wrap: see `distribute`; the world size may differ from that at `save`.
            trust_remote_code: whether the folder's model may run code of its own.
            **settings: override saved settings, e.g. `learning_rate`. With another `optimizer` its state begins anew. A
                function, or a setting `module:object`, must be given again: a folder names no code to run.

        Raises:
            DamagedFile: a file of the folder is missing or was changed.
            ValueError: the folder holds no agent, one of another class, or one of another format.
        """
        agent: Self = load_agent(cls, Path(folder), env, device, wrap, trust_remote_code, settings)
        return agent
