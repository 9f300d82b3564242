"""`collect` with rewards that fail: rows that are skipped, and rows that are as if nothing had failed."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from agents.sampling import Rollout, collect, new_generator
from tests.helpers.policies import random_policy
from tests.helpers.skips import with_skips, without
from tests.helpers.tasks import golden, letter_values, make, random_reference, words
from textenv.rewards import RewardError

SKIP = {"on_reward_error": "skip", "reward_tries": 2, "reward_wait": 0.0}


def fails_for_odd(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Any:
    """`letter_values`; raises an error where a completion has an odd number of tokens."""
    if any(len(ids) % 2 for ids in completion_ids):
        raise ValueError("odd")
    return letter_values(prompts, completions, completion_ids)


def none_for_odd(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Any:
    """`letter_values`; None where a completion has an odd number of tokens."""
    scores = letter_values(prompts, completions, completion_ids)
    return [None if len(ids) % 2 else score for ids, score in zip(completion_ids, scores, strict=True)]


def sampled(**arguments: Any) -> Rollout:
    """Eight completions, the same ones whatever the reward."""
    env = make(words(reference=random_reference(4, 7, sparse=True), max_new_tokens=4) | arguments)
    policy = random_policy(env, scale=0.1)
    return collect(env, policy, 8, num_generations=4, generator=new_generator("cpu", 1))


def assert_equal(found: Rollout, expected: Rollout) -> None:
    """Every field is the same, but for the tokenizer, an object of each task; nan equals nan."""
    for field in fields(Rollout):
        if field.name == "tokenizer":
            continue
        left, right = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(left, torch.Tensor):
            torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True, msg=field.name)
        else:
            assert left is right or (left == right).all(), field.name


@pytest.mark.filterwarnings("ignore:.*completions are skipped")
@pytest.mark.parametrize("reward", [fails_for_odd, none_for_odd])
@pytest.mark.parametrize("role", ["reward", "gold_reward"])
def test_a_completion_whose_reward_fails_is_skipped(reward: Any, role: str) -> None:
    """Its mask is all False, its scores are nan, its other numbers 0; the other rows are as if nothing had failed."""
    healthy = sampled(gold_reward=golden) if role == "reward" else sampled(gold_reward=letter_values)
    found = sampled(**{"gold_reward": golden} | {role: reward} | SKIP)
    odd = torch.nonzero(healthy.mask.sum(dim=1) % 2)[:, 0].tolist()
    assert 0 < len(odd) < len(healthy)
    assert_equal(found, with_skips(healthy, odd))
    assert_equal(found.scored(), without(healthy, odd))
    assert found.valid.tolist() == [row not in odd for row in range(8)]
    assert found.num_sampled == healthy.num_sampled == healthy.mask.sum() > found.mask.sum()


@pytest.mark.parametrize("on_error", ["raise", "retry"])
def test_nothing_is_skipped_unless_asked(on_error: str) -> None:
    """The error of the reward is raised, with the completion."""
    with pytest.raises(RewardError, match="'fails_for_odd' failed at .*odd, for the completion"):
        sampled(reward=fails_for_odd, on_reward_error=on_error, reward_tries=2, reward_wait=0.0)


def test_without_a_failure_skipping_changes_nothing() -> None:
    """Every field is the same to the bit."""
    assert_equal(sampled(**SKIP), sampled())


def test_a_start_with_a_prefix_counts_the_sampled_tokens_alone() -> None:
    """Also where the completion is skipped."""
    env = make(words(reward=fails_for_odd, max_new_tokens=4) | SKIP)
    mdp = env.unwrapped.mdp
    start = mdp.empty_state(24)
    for row in range(24):
        start.put(row, mdp.make_state(0, "a b"))
    with pytest.warns(UserWarning, match="skipped"):
        rollout = collect(env, random_policy(env, scale=0.1), start=start, generator=new_generator("cpu", 2))
    assert rollout.valid.any() and not rollout.valid.all() and rollout.lengths is not None
    assert set(rollout.lengths.tolist()) <= {1, 2}
    assert rollout.mask.sum(dim=1)[rollout.valid].equal(rollout.lengths[rollout.valid])


def test_a_sum_that_is_not_finite_in_float32_is_refused() -> None:
    """Although each of its terms is; the error has their sizes. Control: a little smaller, it is a reward."""

    def term(transitions: Any) -> Any:
        return np.where(transitions.terminated, 3e38, 0.0)

    with pytest.raises(ValueError, match=r"finite in float32, got 6.*e\+38.*'score': 3e\+38.*'term': 3e\+38"):
        sampled(reward=lambda prompts, **_: [3e38] * len(prompts), shaping=[term])
    rollout = sampled(reward=lambda prompts, **_: [3e37] * len(prompts), shaping=[term])
    assert rollout.rewards.isfinite().all() and rollout.rewards.max() > 3e38
