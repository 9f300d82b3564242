"""The work that all are measured on: answers of a random GPT-2 to random prompts, paid for distinct tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel

from textenv.lm import load_causal_lm


class Size(NamedTuple):
    """A GPT-2."""

    layers: int
    width: int
    heads: int
    vocab_size: int


SIZES = {
    "smoke": Size(1, 16, 2, 32),
    "tiny": Size(2, 128, 4, 512),
    "small": Size(4, 256, 8, 5000),
    "gpt2": Size(12, 768, 12, 50257),
}


@dataclass(frozen=True)
class Work:
    """One update: `answers` answers of `tokens` tokens, learned from `epochs` times, all in one minibatch.

    `size` is one of `SIZES`, or the folder of a causal language model. `micro_batch` answers are in memory at once
    while learning; None is all.
    """

    size: str = "tiny"
    answers: int = 64
    prompt: int = 16
    tokens: int = 32
    epochs: int = 4
    micro_batch: int | None = None
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def generations(self) -> int:
        """Answers a prompt, for agents that want several."""
        return 8 if self.answers % 8 == 0 else 2

    def model(self, kind: Any = GPT2LMHeadModel, **arguments: Any) -> Any:
        """The same random weights for everyone; no token ends a text unless `eos_token_id` says so."""
        if self.size not in SIZES:
            return load_causal_lm(self.size).eval()
        layers, width, heads, vocabulary = SIZES[self.size]
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=vocabulary,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            n_positions=self.prompt + self.tokens,
            resid_pdrop=0.0,  # TRL trains with dropout where a model has it, which takes time that the others do not
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **arguments},
        )
        return kind(config).eval()

    @property
    def words(self) -> list[str]:
        """The vocabulary, but for its first token, which ends a text where something must."""
        known = SIZES.get(self.size) or AutoConfig.from_pretrained(self.size)
        return [f"w{i}" for i in range(1, known.vocab_size)]

    def prompts(self) -> list[str]:
        """A prompt an answer, all of one length."""
        generator = torch.Generator().manual_seed(1)
        drawn = torch.randint(len(self.words), (self.answers, self.prompt), generator=generator)
        return [" ".join(self.words[i] for i in row) for row in drawn.tolist()]


def distinct(prompts: Any, completions: Any, completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """The share of distinct tokens: cheap, and learnable."""
    return [len(set(ids)) / max(1, len(ids)) for ids in completion_ids]
