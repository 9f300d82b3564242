"""TRL's trainers on the same work, in a virtual environment of their own (`make bench`).

RLOO and GRPO are from the latest TRL, PPO from 1.12, the last release that has it. A round samples one batch and takes
`epochs` steps on it; a callback waits between rounds.
"""

from __future__ import annotations

import tempfile
from types import SimpleNamespace
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import GPT2ForSequenceClassification, PreTrainedTokenizerFast, TrainerCallback

from experiments.bench.work import Work, distinct

ROUNDS = 10_000  # more than a benchmark requests
END = "<end>"  # token 0, padding and EOS; sampled about as rarely as any other token
SETTINGS: dict[str, Any] = {"learning_rate": 3e-4, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
SETTINGS |= {"logging_strategy": "no", "gradient_checkpointing": False, "seed": 0}


def settings_of(work: Work) -> dict[str, Any]:
    """The settings of all trainers; gradients are accumulated over micro-batches of `micro_batch` completions."""
    rows = work.micro_batch or work.completions
    return SETTINGS | {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": work.completions // rows,
        "use_cpu": work.device == "cpu",
        "bf16": work.dtype == "bfloat16",
    }


class Rounds(TrainerCallback):
    """Reports each round after its last optimizer step, then waits for the next request; the first round is warm-up."""

    def __init__(self, protocol: Any, steps: int) -> None:
        self.protocol, self.steps, self.tokens, self.warm = protocol, steps, 0, False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Counts an optimizer step; `steps` of them are a round."""
        if state.global_step % self.steps == 0:
            self.protocol.report(self.tokens, {}, {}) if self.warm else self.protocol.ready()
            self.warm, self.tokens = True, 0
            control.should_training_stop = not self.protocol.wait()
            if control.should_training_stop:
                raise SystemExit  # TRL's PPO ignores should_training_stop
        return control

    def reward(self, prompts: Any, completions: Any, completion_ids: list[list[int]], **columns: Any) -> list[float]:
        """Scores with `distinct`, and counts the completion tokens."""
        self.tokens += sum(map(len, completion_ids))
        return distinct(prompts, completions, completion_ids)


def tokenizer(work: Work) -> Any:
    """A tokenizer of whole words, like `textenv.WordTokenizer`."""
    words = {word: i for i, word in enumerate([END, *work.words])}
    base_model = Tokenizer(models.WordLevel(words, unk_token=END))
    base_model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    settings: dict[str, Any] = {"eos_token": END, "pad_token": END, "padding_side": "left"}
    return PreTrainedTokenizerFast(tokenizer_object=base_model, **settings)  # type: ignore[no-untyped-call]


def grouped(work: Work, protocol: Any, name: str) -> None:
    """Runs RLOO or GRPO: groups of completions, no critic."""
    import trl

    rounds = Rounds(protocol, work.epochs)
    with tempfile.TemporaryDirectory() as folder:
        work.model(eos_token_id=0, pad_token_id=0).save_pretrained(folder)  # loaded twice: as policy and as reference
        settings = getattr(trl, f"{name}Config")(
            output_dir=folder,
            num_generations=work.generations,
            num_iterations=work.epochs,
            max_completion_length=work.tokens,
            beta=0.05,
            model_init_kwargs={"dtype": work.dtype},  # otherwise weights are cast again for each token
            max_steps=ROUNDS,
            **settings_of(work),
        )
        trainer = getattr(trl, f"{name}Trainer")(
            model=folder,
            reward_funcs=rounds.reward,
            args=settings,
            train_dataset=Dataset.from_dict({"prompt": work.prompts()}),
            processing_class=tokenizer(work),
            callbacks=[rounds],
        )
        trainer.train()


class TokenReward(nn.Module):
    """The smallest reward model that TRL's PPO accepts: it scores a token with its id over the number of words."""

    base_model_prefix = "decoder"

    def __init__(self, work: Work, rounds: Rounds) -> None:
        super().__init__()
        self.work, self.rounds = work, rounds

    def decoder(self, input_ids: Tensor, **_: Any) -> Any:
        """Returns "hidden states" [B, L, 1], and counts the completion tokens: those before the first END."""
        completions = input_ids[:, self.work.prompt :]
        self.rounds.tokens += int((completions != 0).cumprod(dim=1).sum())
        return SimpleNamespace(hidden_states=[input_ids[..., None].float()])

    def score(self, hidden: Tensor) -> Tensor:
        """Scores, [B, L, 1]."""
        return hidden / len(self.work.words)


def ppo(work: Work, protocol: Any) -> None:
    """Runs TRL's PPO, whose critic is a separate model."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    rounds, words = Rounds(protocol, 1), tokenizer(work)
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=folder,
                num_ppo_epochs=work.epochs,
                num_mini_batches=1,
                local_rollout_forward_batch_size=work.completions,
                response_length=work.tokens,
                num_sample_generations=0,
                total_episodes=ROUNDS * work.completions,
                temperature=1.0,
                **settings_of(work),
            ),
            processing_class=words,
            model=work.model(eos_token_id=0, pad_token_id=0),
            ref_model=work.model(eos_token_id=0, pad_token_id=0),
            reward_model=TokenReward(work, rounds),
            value_model=work.model(GPT2ForSequenceClassification, num_labels=1, pad_token_id=0),
            train_dataset=Dataset.from_list([dict(words(prompt)) for prompt in work.prompts()]).remove_columns(
                "token_type_ids" if "token_type_ids" in words(work.prompts()[0]) else []
            ),
            callbacks=[rounds],
        )
        trainer.train()


PEERS: dict[str, Any] = {
    "trl rloo": lambda work, protocol: grouped(work, protocol, "RLOO"),
    "trl grpo": lambda work, protocol: grouped(work, protocol, "GRPO"),
    "trl ppo": ppo,
}
