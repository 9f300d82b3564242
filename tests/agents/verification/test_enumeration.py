"""The enumeration of completions, on which the claims rest."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.functional import gae, reward_to_go
from agents.verification import random_log_probs
from tests.helpers.lecture import SEEDS, all_completions
from textenv import exact


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, prompts=st.integers(1, 3))
def test_the_enumeration_is_complete(seed: int, prompts: int) -> None:
    """Their probabilities sum to one, their returns average to J, and their tokens lead to the states of the tree."""
    completions = all_completions(seed, num_prompts=prompts)
    returns = reward_to_go(completions.rewards, completions.mask)[:, 0]
    assert float(completions.probability.sum()) == pytest.approx(1.0)
    assert float(completions.probability @ returns) == pytest.approx(completions.evaluation.objective)
    ids, attention = completions.sequences()
    width = completions.tree.mdp.prompt_width
    for row in range(len(ids)):
        tokens = ids[row, width:][attention[row, width:] == 1].tolist()
        prompt = completions.tree.mdp.prompts.texts[completions.prompt[row]]
        assert completions.tree.state_index(prompt, tokens[:-1]) == completions.states[row][completions.mask[row]][-1]


def test_conditional_means_of_returns_are_q_and_v() -> None:
    """E[G_t | s_t, a_t] is Q and E[G_t | s_t] is V; Q and V differ (control)."""
    completions = all_completions(6)
    to_go = reward_to_go(completions.rewards, completions.mask)
    q_values, values = (completions.look_up(getattr(completions.evaluation, name)) for name in ("q_values", "values"))
    torch.testing.assert_close(completions.conditional_mean(completions.edges, to_go), q_values)
    torch.testing.assert_close(completions.conditional_mean(completions.states, to_go), values)
    assert (q_values - values).abs().max() > 0.1
    torch.testing.assert_close(gae(completions.rewards, values, completions.mask, gae_lambda=0.0) + values, q_values)


def test_random_policies_have_the_distance_asked_for() -> None:
    """`random_log_probs` is near the reference for a small distance, and a valid policy on a sparse tree."""
    tree = exact.enumerate_tree(gym.make("textenv/TajMahal-v0"))
    near, far = (
        exact.evaluate_log_probs(tree, random_log_probs(tree, np.random.default_rng(0), d)).kl for d in (0.01, None)
    )
    assert 0 < near < 1e-3 < far < np.inf
