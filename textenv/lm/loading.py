"""Loading causal language models, and checking that they are causal."""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

from textenv.lm.forward import forward_completions


def load_causal_lm(path: str | PathLike[str]) -> Any:
    """The causal language model in a folder, or of a hub id, in float32.

    Raises:
        ValueError: what is there is none, or lacks weights, which would be random.
        OSError: nothing is there.
    """
    config = AutoConfig.from_pretrained(path)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"{str(path)!r} holds no causal language model, which writes from left to right, but a {config.model_type}."
        )
    whole: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    model, loaded = whole
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"{str(path)!r} holds no whole causal language model: {missing[0]} is missing.")
    return model


def check_vocabulary(tokens: int, size: int, name: str) -> None:
    """A model's vocabulary must be its tokenizer's, or larger by some padding (to round numbers); else a ValueError."""
    if not 0 <= size - tokens <= max(128, tokens // 20):
        raise ValueError(
            f"The {name} has a vocabulary of {size} tokens, the tokenizer one of {tokens}; they must be the same, "
            "token for token, but for some padding of the model's."
        )


@torch.no_grad()
def check_causal(model: Any) -> None:
    """What stands to the right must not be seen, or the log-probabilities of an answer would know it.

    Raises:
        ValueError: the model looks ahead, as BERT's kind does, or does not take what is needed here.
    """
    name, ids = type(model).__name__, torch.tensor([[0, 0], [0, 1]], device=model.device)
    try:
        first = forward_completions(
            model, torch.nn.functional.pad(ids, (0, 1)), torch.ones(2, 3, device=ids.device).long(), 2
        )
    except TypeError as error:
        raise ValueError(
            f"{name} does not take position_ids and logits_to_keep, which are needed here: {error}"
        ) from None
    if not torch.allclose(first.logits[0, 0].float(), first.logits[1, 0].float(), rtol=1e-4, atol=1e-4):
        raise ValueError(f"{name} sees what comes after a token, so it is no causal language model (an encoder?).")
