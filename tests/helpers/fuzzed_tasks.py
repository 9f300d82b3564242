"""Tasks, wrong policies and a failing reward for the state machines over environments."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from tests.helpers.episode_model import score
from tests.helpers.tasks import PROMPTS, SHAPING, golden, letter_values, random_reference, words
from textenv.shaping import shaping_name

FAILS: list[bool] = []  # the reward fails while it is not empty; shared by the copies of an environment


def fragile(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
    """`letter_values`, or a NaN while `FAILS` is not empty."""
    if FAILS:
        return [float("nan")] * len(prompts)
    return letter_values(prompts, completions, completion_ids)


class PureLetters:
    """The same scores with `score_tokens`: environments tabulate or cache them."""

    __name__ = "pure_letters"

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        """Scores of prompts that are not in the list."""
        return [score(prompt, ids) for prompt, ids in zip(prompts, completion_ids, strict=True)]

    def __init__(self, prompts: list[str]) -> None:
        self.prompts = prompts

    def score_tokens(self, prompt: Any, tokens: Any, length: Any) -> Any:
        """Scores [K] of the completions in `tokens` [K, T]."""
        rows = zip(prompt, tokens.tolist(), length, strict=True)
        return np.array([score(self.prompts[i], ids[:end]) for i, ids, end in rows])


@cache
def language_model(vocab_size: int) -> Any:
    """A random GPT-2 in float64."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "initializer_range": 0.5}
    config = GPT2Config(vocab_size=vocab_size, bos_token_id=0, eos_token_id=0, **shape)
    return GPT2LMHeadModel(config).double().eval()


@st.composite
def fuzzed_tasks(draw: Any) -> dict[str, Any]:
    """Arguments of `TextMDP`, and the `names` of the shaping terms: every kind of reference, reward and shaping."""
    vocab_size, kind = draw(st.integers(3, 5)), draw(st.integers(0, 9))
    prompts = draw(st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=3, unique=True))
    reference: Any = None if kind == 0 else language_model(vocab_size)
    if kind > 1:
        reference = random_reference(vocab_size, draw(st.integers(0, 99)), sparse=kind > 4)
    shaping = draw(st.lists(st.sampled_from(SHAPING), max_size=2, unique=True)) if kind % 2 else []
    return words(
        vocab_size,
        prompts=prompts,
        reference=reference,
        reward=draw(st.sampled_from([fragile, PureLetters(prompts)])),
        max_new_tokens=draw(st.integers(1, 4)),
        kl_coef=draw(st.sampled_from([0.0, 0.25, 1.0])),
        shaping=shaping,
        gold_reward=draw(st.sampled_from([None, golden])),
        max_prompt_length=draw(st.sampled_from([None, 4])),
    ) | {"names": [shaping_name(term) for term in shaping]}


def arguments(task: dict[str, Any]) -> dict[str, Any]:
    """Those of `TextMDP`."""
    return {name: value for name, value in task.items() if name != "names"}


def broken_policies(vocab_size: int) -> list[Any]:
    """Policies whose logits are refused, whatever token is taken."""
    values = [np.nan, np.inf, -np.inf]
    return [
        *(lambda ids, mask, value=value: np.full((len(ids), vocab_size), value) for value in values),
        lambda ids, mask: np.zeros((len(ids), vocab_size + 1)),
        lambda ids, mask: None,
        lambda ids, mask: np.full((len(ids), vocab_size), "a"),
    ]
