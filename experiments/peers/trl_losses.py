"""TRL's trainers on an enumerated batch: `_generate_and_score_completions`, then `_compute_loss`, both unchanged.

Three things are replaced. `_generate` returns the enumerated completions; the reward function returns their scores;
the model returns log pi(a_t|s_t) of the table, as TRL's fused language-model head would. So the advantages, the KL in
the reward, the importance weights, the KL in the loss and the divisor are all TRL's. TRL keeps rewards in float32.
"""

from __future__ import annotations

import tempfile
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from agents.sampling import Rollout

END = "<end>"  # token 0: EOS and padding, as in the toy
LENGTH = 3  # the toy's longest completions
SETTINGS: dict[str, Any] = {
    "max_completion_length": LENGTH,
    "gradient_accumulation_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
}


class Table(nn.Module):
    """In place of a language model with TRL's fused head: the log-probabilities of the completions of a batch."""

    is_gradient_checkpointing = False
    log_probs: Tensor  # [B, T]

    def forward(self, input_ids: Tensor, labels: Tensor, **_: Any) -> Any:
        """log pi(a_t|s_t) and an entropy of 0 (only logged), [B, length of the longest completion]."""
        length = int((labels != -100).any(dim=0).sum())
        found = self.log_probs[:, :length]
        return SimpleNamespace(log_probs=found, entropy=torch.zeros_like(found), aux_loss=None)


class OnTable:
    """A trainer whose completions, scores and log-probabilities are those of a `Rollout`.

    Attributes:
        other_sampler: the completions are another sampler's, as with vLLM: the trainer computes the old
            log-probabilities with pi itself, and corrects for the sampler. Otherwise they are those of an older policy,
            whose log-probabilities are the old ones.
    """

    rollout: Rollout
    model: Table
    ref_model: Table
    other_sampler = False

    def __call__(self, rollout: Rollout, log_probs: Tensor) -> Tensor:
        """The loss, see `agents.verification.verify`."""
        self.rollout = rollout
        self.model.log_probs = log_probs.detach() if self.other_sampler else rollout.log_probs
        self.ref_model.log_probs = rollout.ref_log_probs
        trainer: Any = self
        inputs = trainer._generate_and_score_completions([{"prompt": text} for text in rollout.prompts])
        self.model.log_probs = log_probs
        loss: Tensor = trainer._compute_loss(self.model, inputs)
        trainer._metrics["train"].clear()  # they grow without bound
        return loss

    def ids(self) -> tuple[list[list[int]], list[list[int]], list[list[float]]]:
        """The prompts' and the completions' tokens, and the log-probabilities as sampled."""
        columns = self.rollout.input_ids.shape[1] - self.rollout.mask.shape[1]
        prompts, real = self.rollout.input_ids[:, :columns], self.rollout.attention_mask[:, :columns].bool()
        completions = zip(self.rollout.input_ids[:, columns:], self.rollout.log_probs, self.rollout.mask, strict=True)
        taken = [(ids[mask].tolist(), log_probs[mask].tolist()) for ids, log_probs, mask in completions]
        prompt_ids = [ids[kept].tolist() for ids, kept in zip(prompts, real, strict=True)]
        return prompt_ids, [ids for ids, _ in taken], [log_probs for _, log_probs in taken]

    def scores(self, **_: Any) -> list[float]:
        """The reward function."""
        scores: list[float] = self.rollout.scores.tolist()
        return scores


class GRPO(OnTable, GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPOTrainer."""

    def _generate(self, prompts: list[str]) -> Any:
        prompt_ids, completion_ids, log_probs = self.ids()
        return prompt_ids, completion_ids, None, list(self.rollout.completions), log_probs, {}, None, []


class RLOO(OnTable, RLOOTrainer):  # type: ignore[misc]
    """TRL's RLOOTrainer."""

    def _generate(self, prompts: list[str]) -> Any:
        prompt_ids, completion_ids, _ = self.ids()
        return prompt_ids, completion_ids, list(self.rollout.completions)


def tokenizer() -> Any:
    """A tokenizer whose token 0 ends and pads; no text is encoded with it."""
    words = Tokenizer(models.WordLevel({END: 0, "a": 1, "b": 2}, unk_token=END))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=END, pad_token=END)  # type: ignore[no-untyped-call]


def make(kind: type[Any], config: type[Any], num_generations: int, settings: dict[str, Any]) -> Any:
    """A trainer of the class `kind`, made by its own `__init__` with a tiny model, which the table then replaces."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = GPT2LMHeadModel(GPT2Config(vocab_size=3, n_embd=4, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0))
    scores: list[Any] = []
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        model.save_pretrained(folder)
        trainer = kind(
            model=folder,  # loaded twice: as policy and as reference
            reward_funcs=lambda **arguments: scores[0](**arguments),
            args=config(
                output_dir=folder,
                num_generations=num_generations,
                per_device_train_batch_size=num_generations,
                **SETTINGS,
                **settings,
            ),
            train_dataset=Dataset.from_dict({"prompt": ["a", "b"]}),
            processing_class=tokenizer(),
        )
    scores.append(trainer.scores)
    trainer.model, trainer.ref_model = Table(), Table()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def grpo(num_generations: int = 2, **settings: Any) -> Any:
    """The loss of GRPOTrainer. Two iterations per batch: only then does TRL keep the old log-probabilities."""
    return make(GRPO, GRPOConfig, num_generations, {"num_iterations": 2} | settings)


def grpo_on_samples_of_vllm(num_generations: int = 2, **settings: Any) -> Any:
    """The loss of GRPOTrainer on completions of another sampler, with the correction that it has for vLLM."""
    trainer = make(GRPO, GRPOConfig, num_generations, settings)
    trainer.use_vllm = trainer.other_sampler = True
    return trainer


def rloo(num_generations: int = 2, **settings: Any) -> Any:
    """The loss of RLOOTrainer."""
    return make(RLOO, RLOOConfig, num_generations, settings)
