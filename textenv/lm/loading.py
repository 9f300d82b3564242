"""Loads causal language models, and checks that they are causal and fit the tokenizer."""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

from textenv.lm.forward import forward_completions


def load_causal_lm(path: str | PathLike[str]) -> Any:
    """Loads the causal language model of a folder or hub id, in float32.

    Raises:
        ValueError: it is another kind of model, or lacks weights, which transformers would draw at random.
        OSError: there is no model.
    """
    config = AutoConfig.from_pretrained(path)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"{str(path)!r} is not a causal language model (one that predicts the next token), but a "
            f"{config.model_type}."
        )
    result: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    model, loaded = result
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"{str(path)!r} is not a complete causal language model: {missing[0]} is missing.")
    return model


def check_vocabulary(tokens: int, size: int, name: str) -> None:
    """Raises a ValueError unless a model's vocabulary is its tokenizer's, or larger by some padding."""
    if not 0 <= size - tokens <= max(128, tokens // 20):
        raise ValueError(
            f"The {name} has a vocabulary of {size} tokens, the tokenizer one of {tokens}; they must be the same, "
            "token for token, apart from some padding of the model's."
        )


@torch.no_grad()
def check_causal(model: Any) -> None:
    """Checks that later tokens do not change the logits of earlier ones: completions could not be scored in parallel.

    Raises:
        ValueError: the model attends to later tokens, as an encoder like BERT does, or lacks a required argument.
    """
    name, ids = type(model).__name__, torch.tensor([[0, 0], [0, 1]], device=model.device)
    try:
        output = forward_completions(
            model, torch.nn.functional.pad(ids, (0, 1)), torch.ones(2, 3, device=ids.device).long(), 2
        )
    except TypeError as error:
        raise ValueError(f"{name} must take the arguments position_ids and logits_to_keep: {error}") from None
    if not torch.allclose(output.logits[0, 0].float(), output.logits[1, 0].float(), rtol=1e-4, atol=1e-4):
        raise ValueError(f"{name} attends to later tokens, so it is not a causal language model (an encoder?).")
