"""The toys of the table."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from experiments.peers.toys import BETA, OBJECTIVES, STEPS
from textenv import exact


@pytest.mark.parametrize("name", OBJECTIVES)
def test_its_objective_is_what_its_name_states(name: str) -> None:
    """With a KL or without, with scores or without."""
    tree = exact.enumerate_tree(OBJECTIVES[name]())
    assert tree.mdp.kl_coef == (BETA if "KL" in name else 0.0)
    assert np.nanmax(np.abs(tree.scores)) > 0 or name == "-KL"
    lengths = {int(length) for length in (tree.paths()[0] >= 0).sum(axis=1)}
    assert lengths == ({STEPS} if "equal lengths" in name else {1, 2, 3})


def test_the_scores_are_those_of_the_toy_in_float32() -> None:
    """Exactly. Control: the toy's own are not."""
    settings = {"vocab_size": 3, "max_new_tokens": 3, "num_prompts": 2, "kl_coef": BETA}
    rounded = exact.enumerate_tree(OBJECTIVES["score - KL"]()).scores
    original = exact.enumerate_tree(gym.make("textenv/Toy-v0", **settings)).scores
    assert np.array_equal(rounded, original.astype(np.float32)) and not np.array_equal(rounded, original)
