"""What the agents share: learn, predict, save and load, with Stable-Baselines3's habits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from agents.checkpoint import read_agent, restore_training_state, save_agent
from agents.functional import ESTIMATORS, adaptive_kl_coef
from agents.policy import TransformerPolicy
from agents.sampling import (
    Rollout,
    Sampler,
    check_spaces,
    collect,
    collect_external,
    is_external,
    new_generator,
    sample,
)
from agents.training import (
    Info,
    Losses,
    MasterWeights,
    Metrics,
    all_reduce_gradients,
    all_reduce_sum,
    broadcast_parameters,
    gather_objects,
    gather_tensor,
    merge_micro_batches,
    per_rank,
    rank,
    rank_seed,
    reduce_ranks,
    rollout_metrics,
    world_size,
)
from textenv import TextMDP, get_mdp


@dataclass(eq=False)
class Agent(ABC):
    """Collect answers with the policy as it is, learn from them, forget them; again.

    A timestep is a token. `learn` collects `n_episodes` answers at a time, to their ends; what an agent does with them
    is its `train`. Where a launcher started several processes (`agents.training.ranks`), each makes the agent: all
    begin with the policy of the first, and learn one.
    """

    policy: TransformerPolicy
    """Writes, and says V."""
    env: Any
    """A text environment, single or batched; another library's single environment whose observation is a Dict of
    `input_ids` and `attention_mask`; None for an agent that only predicts."""
    learning_rate: float = 3e-4
    """Adam's step size."""
    n_episodes: int = 64
    """Answers collected an update, by all processes together."""
    num_generations: int = 1
    """Answers to the same prompt, side by side among the n_episodes."""
    gamma: float = 1.0
    """Discount; 1 for text: the score counts whole at the end, however long the answer."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm."""
    micro_batch_size: int | None = None
    """Answers in memory at once while learning, where gradients are added up; None is all of them (of a process)."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """How `objective/kl` is estimated. What is paid is always k1: the only one with the gradient of the KL, see
    `python -m experiments lecture --claims which_kl`."""
    kl_target: float | None = None
    """The KL over whole answers, in nats, to which beta is steered, from the task's on; None keeps the task's beta.
    It is measured by kl_estimator (k2 is biased)."""
    kl_horizon: int = 10_000
    """With kl_target: answers after which beta may have changed by a factor of e^0.2; at least n_episodes."""
    seed: int | None = None
    """Seeds prompts, tokens and minibatches; None draws a seed from the system."""

    needs_values: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.n_episodes < 1 or self.num_generations < 1 or self.n_episodes % self.num_generations:
            raise ValueError(
                f"n_episodes must be a positive multiple of num_generations, got {self.n_episodes} and "
                f"{self.num_generations}."
            )
        for name, unit in (("n_episodes", self.num_generations), ("batch_size", 1)):
            if (number := getattr(self, name, None)) and number % (unit * world_size()):
                raise ValueError(
                    f"{name} must be a multiple of {unit * world_size()}, so that {world_size()} "
                    f"processes have equal shares of whole groups, got {number}."
                )
        if not isinstance(self.policy, TransformerPolicy):
            raise TypeError(f"policy must be a TransformerPolicy (for_env, from_pretrained), got {self.policy!r}.")
        check_range("gamma", self.gamma, 0, 1)
        check_range("max_grad_norm", self.max_grad_norm, 1e-12)
        check_range("micro_batch_size", self.micro_batch_size, 1)
        check_range("learning_rate", self.learning_rate, 0)
        check_range("kl_target", self.kl_target, 1e-12)
        if self.kl_target is not None:
            check_range("kl_horizon", self.kl_horizon, self.n_episodes)  # one batch moves beta by 20% at most
        if self.kl_estimator not in ESTIMATORS:
            raise ValueError(f"kl_estimator must be one of {', '.join(ESTIMATORS)}, got {self.kl_estimator!r}.")
        self.kl_coef: float | None = None  # the task's
        self.sampler: Sampler = sample  # what generates; another may be put here before learning
        if is_external(self.env):
            check_spaces(self.env, self.policy)
            if self.num_generations > 1 or self.kl_target is not None:
                raise ValueError(
                    "num_generations > 1 and kl_target need an environment of textenv: one of another library begins "
                    "where it likes and has no reference. (REINFORCE: num_generations=1, baseline='mean'.)"
                )
        elif (mdp := self.mdp) is not None:
            self._check_fit(mdp)
            if self.kl_target is not None:
                if mdp.kl_coef == 0:
                    raise ValueError("kl_target needs an environment with kl_coef > 0 to start from, got 0.")
                self.kl_coef = mdp.kl_coef
        if self.env is not None:
            broadcast_parameters(self.policy.parameters())
        self.trained = trainable_parameters(self.policy)
        self.generator = new_generator(self.policy.device, rank_seed(self.seed))
        self.learner: Any = self.policy
        self.num_timesteps = 0
        self.num_updates = 0

    @cached_property
    def master_weights(self) -> MasterWeights:
        """What Adam steps; made when first asked for, so that no device need hold the whole of what will be sharded."""
        return MasterWeights(self.trained, trainable_parameters(self.learner))

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Adam, with eps as in Huang et al. 2024 (arXiv:2403.17031)."""
        return torch.optim.Adam(self.master_weights.parameter_groups(self.parameter_groups()), eps=1e-5)

    @property
    def mdp(self) -> TextMDP | None:
        """What the environment steps through; None without one, and for one of another library."""
        return None if self.env is None or is_external(self.env) else get_mdp(self.env)

    def _check_fit(self, mdp: TextMDP) -> None:
        if self.policy.vocab_size != mdp.vocab_size:
            raise ValueError(
                f"The policy writes {self.policy.vocab_size} tokens, the environment knows {mdp.vocab_size}; "
                "use TransformerPolicy.for_env(env), or pass vocab_size= to from_pretrained."
            )
        config, longest = self.policy.model.config.get_text_config(), mdp.prompt_width + mdp.max_new_tokens
        context = getattr(config, "max_position_embeddings", None)
        if context is not None and context < longest:
            raise ValueError(
                f"The policy's context is {context} tokens, the environment's texts take up to "
                f"{mdp.prompt_width} + {mdp.max_new_tokens}; shorten the prompts or lower max_new_tokens."
            )
        rope = getattr(config, "rope_parameters", None) or {}
        turns = rope.get("original_max_position_embeddings", longest)
        if rope.get("rope_type") == "longrope" and turns < longest:
            raise ValueError(
                f"The policy turns positions otherwise in texts of more than {turns} tokens (longrope): what it "
                "sampled is not what an update would read. The environment's texts take up to "
                f"{mdp.prompt_width} + {mdp.max_new_tokens}; shorten the prompts or lower max_new_tokens."
            )

    @abstractmethod
    def train(self, rollout: Rollout) -> Metrics:
        """Update the policy from answers that it has just written; returns what is worth watching."""

    def learn(
        self,
        total_timesteps: int,
        callback: Callable[[Any, Rollout, Metrics], bool | None] | None = None,
        progress_bar: bool = False,
        reset_num_timesteps: bool = True,
    ) -> Self:
        """Collect and train until `total_timesteps` more tokens were written (the last batch is finished).

        Args:
            total_timesteps: tokens to write in this call.
            callback: called after each update with the agent, the answers and the metrics; False stops learning, of all
                processes, whichever says so.
            progress_bar: show one (the first process does).
            reset_num_timesteps: count from zero, rather than on from where the last call stopped.
        """
        if total_timesteps < 0:
            raise ValueError(f"total_timesteps must not be negative, got {total_timesteps}.")
        if reset_num_timesteps:
            self.num_timesteps = self.num_updates = 0
        total_timesteps += self.num_timesteps
        hidden = not progress_bar or rank() > 0
        with tqdm(total=total_timesteps, initial=self.num_timesteps, unit="tok", disable=hidden) as bar:
            while self.num_timesteps < total_timesteps:
                before = self.num_timesteps
                rollout = self.collect()
                metrics = reduce_ranks(rollout_metrics(rollout, self.kl_estimator)) | self.train(rollout)
                if self.kl_target is not None and self.kl_coef is not None:
                    metrics["objective/kl_coef"] = self.kl_coef
                    self.kl_coef = adaptive_kl_coef(
                        self.kl_coef, metrics["objective/kl"], self.kl_target, self.n_episodes, self.kl_horizon
                    )
                written = rollout.mask.sum() + (self.num_timesteps - before)  # and what `train` had to write besides
                self.num_timesteps = before + int(all_reduce_sum(written))
                self.num_updates += 1
                bar.update(self.num_timesteps - bar.n)
                shown = [name for name in ("scores", "kl") if f"objective/{name}" in metrics]
                bar.set_postfix({name: f"{metrics[f'objective/{name}']:.3g}" for name in shown})
                if callback is not None:
                    stop = callback(self, rollout, metrics) is False
                    if any(gather_objects(stop)):
                        break
        return self

    def distribute(self, wrap: Callable[[Any], Any]) -> None:
        """From now on compute losses by what `wrap` makes of the policy: `agents.sharding.shard`, a copy in parts.

        Each step brings the policy, which writes and is measured, what the copy has learned. Processes with whole
        weights need no wrapper (DistributedDataParallel): `backward` averages their gradients.

        Raises:
            ValueError: the policy itself was sharded, or a copy would begin without what Adam has learned.
        """
        learner = wrap(self.policy)
        if not same(trainable_parameters(self.policy), self.trained):
            raise ValueError("The policy must stay whole, to write; `agents.sharding.shard` shards a copy of it.")
        if "master_weights" in vars(self) and not same(trainable_parameters(learner), self.trained):
            raise ValueError("What learns in a copy must be told before learning; of a saved agent, load(..., wrap=).")
        self.learner = learner

    def collect(self) -> Rollout:
        """`n_episodes` answers of the policy as it is now; of several processes each collects its share."""
        count = per_rank(self.n_episodes)
        if is_external(self.env):
            return collect_external(
                self.env,
                self.policy,
                count,
                generator=self.generator,
                gamma=self.gamma,
                values=self.needs_values,
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

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What Adam trains, and with which step sizes."""
        return [{"params": self.trained, "lr": self.learning_rate}]

    def backward(self, rows: Tensor, losses: Losses) -> Metrics:
        """The gradient of the losses of some answers, `micro_batch_size` of them in memory at a time.

        Losses are means per answer, so the parts' gradients, each by its share of the answers, add up to the whole. Of
        several losses one is done with before the next is made: what it keeps in memory is gone by then.
        Then they are averaged over the processes, once. What is worth watching is that of all answers, of all
        processes, so that all decide alike.
        """
        self.optimizer.zero_grad()
        if self.micro_batch_size is not None:  # answers to one prompt stand side by side: that it be read once
            rows = rows.sort().values
        parts = rows.split(self.micro_batch_size or len(rows))  # type: ignore[no-untyped-call]
        seen = []
        for part in parts:
            info: Info = {}
            for loss, said in losses(part):
                (len(part) / len(rows) * loss).backward()  # type: ignore[no-untyped-call]
                self.master_weights.accumulate_gradients()
                info |= said
            numbers = torch.stack([number.double() for number in info.values()]).tolist()  # one wait for the device
            seen.append(dict(zip(info, numbers, strict=True)) | {"num_answers": float(len(part))})
        all_reduce_gradients(self.master_weights.masters_of(self.trained))
        metrics = merge_micro_batches(gather_objects(merge_micro_batches(seen)))
        return {name: value for name, value in metrics.items() if not name.startswith("num_")}

    def step(self) -> float:
        """One step of Adam down the gradient; returns its norm before it was scaled down."""
        norm = torch.nn.utils.clip_grad_norm_(self.master_weights.masters_of(self.trained), self.max_grad_norm)
        self.optimizer.step()
        self.master_weights.update_weights()
        return gather_tensor(norm).item()

    @torch.no_grad()
    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """The next token of one text (arrays [L]) or of many ([B, L]); `state` and `episode_start` are not used.

        `action_masks` (bool [V] or [B, V]) says what is allowed; by default `action_mask` in the observation does, or
        else the agent's environment.

        Returns:
            `(action, state)`; the most likely token if `deterministic`, else one drawn from pi.
        """
        input_ids = np.asarray(observation["input_ids"])
        attention_mask = np.asarray(observation["attention_mask"])
        ids, attention = np.atleast_2d(input_ids), np.atleast_2d(attention_mask)
        allowed = None
        action_masks = observation.get("action_mask") if action_masks is None else action_masks
        if action_masks is not None:
            allowed = torch.as_tensor(np.atleast_2d(action_masks), dtype=torch.bool, device=self.policy.device)
        elif (mdp := self.mdp) is not None and not mdp.full_support:
            allowed = torch.as_tensor(mdp.reference.log_probs(ids, attention) > -np.inf, device=self.policy.device)
            allowed |= ~allowed.any(dim=1, keepdim=True)  # a text that has ended: any token will do
        logits = self.policy.next_token_logits(ids, attention)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        if deterministic:
            actions = logits.argmax(dim=-1)
        else:
            actions = torch.multinomial(logits.softmax(dim=-1), 1, generator=self.generator).squeeze(1)
        answer = actions.cpu().numpy()
        return (answer if input_ids.ndim == 2 else answer[0]), state

    @classmethod
    def hyperparameters(cls) -> list[str]:
        """The names of the settings, without policy and env."""
        return [f.name for f in fields(cls) if f.name not in ("policy", "env")]

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes the agent to a folder, see `agents.checkpoint`. Every rank calls it; rank 0 writes."""
        save_agent(self, Path(folder))

    @classmethod
    def load(
        cls,
        folder: str | PathLike[str],
        env: Any = None,
        device: str = "cpu",
        wrap: Callable[[Any], Any] | None = None,
        **settings: Any,
    ) -> Self:
        """An agent as it was saved; learning goes on where it stopped (`reset_num_timesteps=False`).

        What generates is not saved: put another `sampler` there again.

        Args:
            folder: of `save`.
            env: a text environment; None for an agent that only predicts.
            device: where to put it.
            wrap: see `distribute`; the number of processes need not be that of before.
            **settings: override what was saved, e.g. `learning_rate`.

        Raises:
            ValueError: no agent was saved there, another one, or one of another format.
        """
        path = Path(folder)
        saved = read_agent(path, cls.__name__)
        reference = None if env is None or is_external(env) else get_mdp(env).reference
        policy = TransformerPolicy.from_pretrained(path, reference=reference).to(device)
        agent = cls(policy, env, **(saved["settings"] | settings))
        if wrap is not None:
            agent.distribute(wrap)
        restore_training_state(agent, path, saved, generator="seed" not in settings)
        return agent


def trainable_parameters(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that learn."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def same(left: list[torch.nn.Parameter], right: list[torch.nn.Parameter]) -> bool:
    """Whether they are one another, rather than equal."""
    return [id(parameter) for parameter in left] == [id(parameter) for parameter in right]


def check_range(name: str, value: float | None, low: float, high: float = float("inf")) -> None:
    """A setting must be None or in [low, high]; else a ValueError that names it."""
    if value is not None and not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {value}.")
