"""A task with a tiny random language model, whose completions often end, for the agents of TRL."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from tests.helpers.classifiers import word_tokenizer
from tests.helpers.models import model
from textenv.rewards import completion_text


def count_a(prompts: Any, completions: list[Any], **_: Any) -> list[float]:
    """The number of a's; completions are texts or messages."""
    return [float(completion_text(completion).split().count("a")) for completion in completions]


def word_task(kind: str = "llama", **changes: Any) -> Any:
    """Text-v0 with nine words, of which one is EOS and padding; prompts differ in length."""
    arguments = {
        "tokenizer": word_tokenizer(eos_token="[END]"),
        "prompts": ["a", "b a b", "c c"],
        "reward": count_a,
        "reference": model(kind).float(),
        "max_new_tokens": 5,
        "kl_coef": 0.1,
    }
    return gym.make("textenv/Text-v0", **(arguments | changes))
