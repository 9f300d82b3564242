"""Checks of a policy's settings."""

from __future__ import annotations

import numpy as np
from torch import nn

from agents.ranges import check_integer
from textenv.arguments import is_number
from textenv.lm import is_causal_lm


def check_model(model: object) -> None:
    """Raises a TypeError unless it is a causal language model of transformers, or a `PeftModel` around one."""
    if not is_causal_lm(model):
        found = type(model).__name__ if isinstance(model, nn.Module) else " ".join(f"{model!r:.100}".split())
        raise TypeError(
            f"A policy needs a causal language model of transformers, got {found}; "
            "TransformerPolicy.from_pretrained loads one from a path."
        )


def check_separate_critic(value: object) -> None:
    """Raises a ValueError unless the value is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"separate_critic must be True or False, got {value!r:.100}.")


def check_temperature(temperature: float) -> float:
    """Returns the temperature as a float; raises a ValueError unless it is a number in [1e-10, 1e10]."""
    if not is_number(temperature) or not 1e-10 <= temperature <= 1e10:
        raise ValueError(
            f"temperature must be a finite number > 0, in [1e-10, 1e10], got {temperature!r}; for the likeliest "
            "token, predict() has deterministic=True."
        )
    return float(temperature)


def check_vocab_size(vocab_size: int | None, largest: int) -> int:
    """Returns V, by default the model's number of logits; raises a ValueError unless it is in 1 .. `largest`."""
    size = check_integer("vocab_size", largest if vocab_size is None else vocab_size, 1)
    if size > largest:
        raise ValueError(
            f"vocab_size must be at most the model's, {largest}, got {size}; leave it out to use the model's."
        )
    return size
