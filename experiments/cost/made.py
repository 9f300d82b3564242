"""Models of random weights to check estimates on, of shapes that nothing was fitted on."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from textenv.lm import forked_random_state

MADE: dict[str, dict[str, int]] = {
    "gpt2-4x128": {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": 256, "words": 2048},
    "gpt2-3x384": {"n_layer": 3, "n_embd": 384, "n_head": 6, "n_positions": 256, "words": 8192},
    "gpt2-6x96": {"n_layer": 6, "n_embd": 96, "n_head": 3, "n_positions": 256, "words": 1024},
    "gpt2-2x256": {"n_layer": 2, "n_embd": 256, "n_head": 4, "n_positions": 256, "words": 4096},
    "gpt2-1x512": {"n_layer": 1, "n_embd": 512, "n_head": 8, "n_positions": 256, "words": 2048},
}


def save_random_gpt2(folder: str | PathLike[str], words: int, **sizes: Any) -> str:
    """Saves a GPT-2 of random weights with a tokenizer of so many words; returns its folder."""
    vocabulary = {word: i for i, word in enumerate(["</s>", "and", *(f"w{i}" for i in range(words - 2))])}
    splitter = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    splitter.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer: Any = PreTrainedTokenizerFast
    tokenizer(tokenizer_object=splitter, eos_token="</s>").save_pretrained(folder)
    with forked_random_state(torch.device("cpu"), 0):
        GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=words, bos_token_id=None, eos_token_id=0)).save_pretrained(
            folder
        )
    return str(Path(folder))
