"""Small toys for the tests of the lecture, with every completion under a random policy.

The policies are random tables: nothing is trained or sampled, so that no test depends on luck.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from agents.verification import Enumeration, random_log_probs
from experiments.lecture import credit_variance
from experiments.lecture.gram import tabular_gram
from textenv import exact

SEEDS = st.integers(0, 999)


def toy(seed: int = 0, **arguments: Any) -> Any:
    """A toy task; by default it has 15 completions."""
    defaults = {"vocab_size": 3, "max_new_tokens": 3, "num_prompts": 1, "task_seed": seed, "kl_coef": 0.3}
    return gym.make("textenv/Toy-v0", **(defaults | arguments))


def all_completions(seed: int = 0, distance: float | None = None, **arguments: Any) -> Enumeration:
    """Every completion of a toy under a random policy."""
    tree = exact.enumerate_tree(toy(seed, **arguments))
    return Enumeration.of(exact.evaluate_log_probs(tree, random_log_probs(tree, np.random.default_rng(seed), distance)))


def rungs_of(completions: Enumeration, learned: Tensor | None = None) -> dict[str, dict[str, Any]]:
    """Bias and variance of every rung, with respect to the logits of a table; the default of `learned` is V = 0."""
    learned = torch.zeros_like(completions.rewards) if learned is None else learned
    gram = tabular_gram(completions)
    found = credit_variance.ladder(completions, learned)
    return {name: credit_variance.bias_and_variance(completions, rung, gram) for name, rung in found.items()}
