"""The work of every variant: completions of random prompts by a random GPT-2, scored by their distinct tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel

from textenv.lm import load_causal_lm, load_pretrained


class Size(NamedTuple):
    """The dimensions of a GPT-2."""

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
    """One update: `completions` completions of `tokens` tokens, trained on for `epochs` epochs, all in one minibatch.

    `size` is one of `SIZES`, or the folder of a causal language model. `micro_batch` is the number of completions whose
    gradient is computed in one pass; None means all.
    """

    size: str = "tiny"
    completions: int = 64
    prompt: int = 16
    tokens: int = 32
    epochs: int = 4
    micro_batch: int | None = None
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def generations(self) -> int:
        """Completions per prompt, for agents that need groups."""
        return 8 if self.completions % 8 == 0 else 2

    def model(self, kind: Any = GPT2LMHeadModel, **arguments: Any) -> Any:
        """Returns the model; random weights are the same in every call. No EOS unless `eos_token_id` is given."""
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
            resid_pdrop=0.0,  # TRL trains with dropout where a model has it; the others spend no time on it
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **arguments},
        )
        return kind(config).eval()

    @property
    def words(self) -> list[str]:
        """The vocabulary without its first token, which is EOS for the libraries that need one."""
        known = SIZES.get(self.size) or load_pretrained(AutoConfig, self.size)
        return [f"w{i}" for i in range(1, known.vocab_size)]

    def prompts(self) -> list[str]:
        """One prompt per completion, all of the same length."""
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(len(self.words), (self.completions, self.prompt), generator=generator)
        return [" ".join(self.words[i] for i in row) for row in ids.tolist()]


def distinct(prompts: Any, completions: Any, completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """Scores a completion with its share of distinct tokens, which is cheap to compute and can be learned."""
    return [len(set(ids)) / max(1, len(ids)) for ids in completion_ids]
