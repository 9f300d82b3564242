"""Commands of `python -m experiments`, run small."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from experiments.config import TrialConfig


def tiny(**flags: object) -> TrialConfig:
    """A trial of a second."""
    defaults = {"env": "textenv/Toy-v0", "env_args": TINY, "total_timesteps": 400, "n_episodes": 16, "num_evals": 3}
    return TrialConfig(**(defaults | flags))  # type: ignore[arg-type]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m experiments ...` in a process of its own."""
    return subprocess.run([sys.executable, "-m", "experiments", *arguments], capture_output=True, text=True)


def tokenizer(**special: str) -> Any:
    """A word a token."""
    vocabulary = {word: i for i, word in enumerate(["[END]", *"abcdefgh"])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def classifier(kind: str, num_labels: int = 1, **settings: Any) -> Any:
    """A random one, far from constant."""
    torch.manual_seed(0)
    settings = {"vocab_size": 9, "initializer_range": 0.5, "pad_token_id": None} | settings
    config = SHAPES[kind](num_labels=num_labels, **settings)
    return AutoModelForSequenceClassification.from_config(config).eval()


TINY = {"vocab_size": 3, "max_new_tokens": 2, "num_prompts": 1}


SHAPES = {
    "bert": lambda **s: BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
        **s,
    ),
    "gpt2": lambda **s: GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=12, **s),
    "llama": lambda **s: LlamaConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
        **s,
    ),
}
