"""RLOO and GRPO of TRL with the interface of `agents.Agent`, so that a trial runs either.

Prompts, reward, reference, start and evaluation are the task's; the trainers are TRL's, unmodified. They keep TRL's
defaults but for what all agents share: completions per update, step size, whole sampling (no top-k, no top-p), float32,
and no dropout. beta is the task's. Their step size falls over the tokens of the training instead of optimizer steps,
whose number is not known before; where all completions have the same length, the two are equal.

A trainer lives as long as a call of `learn`. It samples with torch's global generator, so a resumed training draws
other prompts and tokens; AdamW's state and the place in the schedule continue.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import secrets
import tempfile
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from tqdm.auto import tqdm

from agents import check_range, check_timesteps
from agents.policy import TransformerPolicy
from agents.training import HealthMonitor, check_metric_name
from experiments.library_agent import Callback, LibraryAgent
from experiments.trl_model import model_restored, remove_dropout
from experiments.trl_task import check_task, trl_prompts
from experiments.trl_updates import Updates


@dataclass(eq=False)
class TRLAgent(LibraryAgent):
    """A trainer of TRL that compares the completions of a group."""

    learning_rate: float = 1e-6
    """AdamW's step size, at the beginning."""
    num_generations: int = 2
    """Completions per prompt, a group; at least 2."""
    n_epochs: int = 1
    """Passes over each batch of completions (num_iterations), each one optimizer step."""
    clip_range: float = 0.2
    """eps, the clip range of the probability ratio (epsilon)."""
    clip_range_high: float | None = None
    """eps for ratios above 1 (epsilon_high); None is clip_range."""
    kl_coef: float | None = None
    """beta; None is the task's."""
    lr_schedule: Literal["linear", "constant", "cosine"] = "linear"
    """The step size over the share of total_timesteps that is done (lr_scheduler_type)."""
    micro_batch_size: int | None = None
    """Completions per forward and backward pass (per_device_train_batch_size); gradients are accumulated. None: all."""

    trainer: ClassVar[str]  # TRL's name of the algorithm

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("num_generations", self.num_generations, 2)
        check_range("kl_coef", self.kl_coef, 0, 1e6)
        for name in ("num_generations", "micro_batch_size"):
            if self.n_episodes % ((size := getattr(self, name)) or 1):
                raise ValueError(f"n_episodes must be a multiple of {name}, got {self.n_episodes} and {size}.")
        check_task(self.mdp, self.initial_policy, f"TRL's {self.trainer}")
        if importlib.util.find_spec("trl") is None:
            raise ImportError(f'TRL\'s {self.trainer} needs TRL: pip install -e ".[trl]".')
        self._num_timesteps = 0
        self._policy = copy.deepcopy(self.initial_policy)
        remove_dropout(self._policy.model)
        trained = [parameter for parameter in self._policy.model.parameters() if parameter.requires_grad]
        # what a trainer makes by default; made here, its state can be saved
        self._optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=0.0, fused=True)

    def trainer_settings(self) -> dict[str, Any]:
        """The arguments of the trainer's config that are this algorithm's own."""
        return {}

    @property
    def policy(self) -> TransformerPolicy:
        """The policy whose model is trained."""
        return self._policy

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW."""
        return self._optimizer

    @property
    def num_timesteps(self) -> int:
        """Number of tokens sampled, end tokens included."""
        return self._num_timesteps

    def count(self, tokens: int) -> None:
        """Counts tokens that a trainer has sampled."""
        self._num_timesteps += tokens

    def continue_from(self, num_timesteps: int) -> None:
        """See `LibraryAgent`; a trainer is seeded with `seed` and the number of tokens before it."""
        self._num_timesteps = num_timesteps

    def learn(
        self,
        total_timesteps: int,
        callback: Callback | None = None,
        progress_bar: bool = False,
        reset_num_timesteps: bool = True,
    ) -> Self:
        """Trains until at least `total_timesteps` more tokens are sampled; the last batch is completed.

        See `LibraryAgent.learn`.
        """
        total_timesteps = check_timesteps(total_timesteps)
        if reset_num_timesteps:
            self._num_timesteps = self.num_updates = 0
            self.health = HealthMonitor()
        if total_timesteps == 0:
            return self
        self.mdp.training.check_name = check_metric_name
        with (
            tqdm(total=total_timesteps, unit="tok", disable=not progress_bar) as bar,
            tempfile.TemporaryDirectory() as folder,
            model_restored(self.policy) as restore_configs,
        ):
            updates = Updates(self, callback, self.num_timesteps + total_timesteps, bar, restore_configs)
            trainer = self._make_trainer(updates, folder)
            try:
                trainer.train()
            except RuntimeError:  # of torch.multinomial, where probabilities are nan
                self.check_finite()
                raise
        return self

    def _make_trainer(self, updates: Updates, folder: str) -> Any:
        """The trainer, with its own copy of the reference. `folder` is its output folder; nothing is kept of it."""
        import trl
        from datasets import Dataset
        from transformers import PrinterCallback

        mdp, model = self.mdp, self.policy.model
        rows = self.micro_batch_size or self.n_episodes
        remaining = updates.goal - self.num_timesteps
        beta = mdp.kl_coef if self.kl_coef is None else self.kl_coef
        seed = secrets.randbelow(2**32) if self.seed is None else (self.seed + self.num_timesteps) % 2**32
        config = getattr(trl, f"{self.trainer}Config")(
            output_dir=folder,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=self.n_episodes // rows,
            max_steps=math.ceil(remaining / self.n_episodes) * self.n_epochs,  # a completion has at least one token
            num_generations=self.num_generations,
            num_iterations=self.n_epochs,
            epsilon=self.clip_range,
            epsilon_high=self.clip_range_high,
            beta=beta,
            learning_rate=self.learning_rate,
            max_grad_norm=self.max_grad_norm,
            max_completion_length=mdp.max_new_tokens,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            chat_template_kwargs=mdp.encoding["chat_template_kwargs"],
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=self.policy.device.type == "cpu",
            dataloader_pin_memory=self.policy.device.type != "cpu",
            seed=seed,
            logging_steps=self.n_epochs,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **self.trainer_settings(),
        )
        prompts = trl_prompts(mdp)
        # TRL leaves out the last prompts of a shuffled list that do not fill a batch
        copies = math.ceil(self.n_episodes / self.num_generations / len(prompts))
        columns = {"prompt": prompts * copies, "index": list(range(len(prompts))) * copies}
        if beta > 0:
            mdp.reference.copy_model().save_pretrained(folder)  # type: ignore[attr-defined]
            model.config._name_or_path = folder  # from where a trainer loads the reference
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] = self.learning_rate
        trainer = getattr(trl, f"{self.trainer}Trainer")(
            model=model,
            reward_funcs=updates.score,
            args=config,
            train_dataset=Dataset.from_dict(columns),
            processing_class=copy.deepcopy(mdp.tokenizer),  # it may get a padding token
            callbacks=[updates],
            optimizers=(self.optimizer, torch.optim.lr_scheduler.LambdaLR(self.optimizer, updates.rate_factor)),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


@dataclass(eq=False)
class TRLRLOO(TRLAgent):
    """TRL's RLOOTrainer: the KL is in the reward, and a completion has one importance weight."""

    normalize_advantage: bool = False
    """Whiten the advantages of a batch (normalize_advantages)."""

    trainer = "RLOO"

    def trainer_settings(self) -> dict[str, Any]:
        """See `TRLAgent`."""
        return {"normalize_advantages": self.normalize_advantage}


@dataclass(eq=False)
class TRLGRPO(TRLAgent):
    """TRL's GRPOTrainer: the KL is in the loss."""

    num_generations: int = 8
    """Completions per prompt, a group; at least 2."""
    kl_coef: float | None = None
    """beta; None is the task's. The KL of this loss is a mean over tokens, and the advantages beside it are divided by
    the spread of the scores: another beta than the task's is its equal. TRL's own default is 0."""
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = "dapo"
    """How the losses of tokens are added up, and their surrogate. luspo needs importance="sequence"."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """The standard deviation that divides the advantages: of the group, of the batch, or none."""
    importance: Literal["token", "sequence"] = "token"
    """What an importance weight is that of (importance_sampling_level)."""

    trainer = "GRPO"

    def __post_init__(self) -> None:
        if self.loss_type == "luspo" and self.importance != "sequence":
            raise ValueError(f"importance must be 'sequence' with loss_type='luspo', got {self.importance!r}.")
        super().__post_init__()

    def trainer_settings(self) -> dict[str, Any]:
        """See `TRLAgent`."""
        names = {"loss_type": self.loss_type, "scale_rewards": self.scale_rewards}
        return names | {"importance_sampling_level": self.importance}
