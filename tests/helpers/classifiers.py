"""Sequence classifiers of random weights, their tokenizer, and preference pairs to train them on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

CLASSIFIERS = {
    "bert": lambda **s: BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        **{"max_position_embeddings": 12} | s,
    ),
    "gpt2": lambda **s: GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=12, **s),
    "llama": lambda **s: LlamaConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        **{"max_position_embeddings": 12} | s,
    ),
}


def word_tokenizer(**special: str) -> Any:
    """A tokenizer with one token per word."""
    vocabulary = {word: i for i, word in enumerate(["[END]", *"abcdefgh"])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def random_classifier(kind: str, num_labels: int = 1, **settings: Any) -> Any:
    """A classifier with random weights, large enough that its scores differ."""
    torch.manual_seed(0)
    settings = {"vocab_size": 9, "initializer_range": 0.5, "pad_token_id": None} | settings
    config = CLASSIFIERS[kind](num_labels=num_labels, **settings)
    return AutoModelForSequenceClassification.from_config(config).eval()


def write_pairs(path: Path, count: int = 120, flip: bool = False) -> Path:
    """Writes pairs in which the completion with more a's is preferred, or with `flip` the other one."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            good, bad = (" ".join(rng.choice(list(words), 3)) for words in ("aaab", "cdef"))
            chosen, rejected = (bad, good) if flip else (good, bad)
            file.write(json.dumps({"prompt": "g h", "chosen": chosen, "rejected": rejected}) + "\n")
    return path
