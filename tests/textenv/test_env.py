"""`TextEnv` equals the plainest core, `tests.helpers.plain_env`, whatever stands behind its one step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.envs import random_trajectory
from tests.helpers.fuzzed_tasks import PureLetters
from tests.helpers.plain_env import PlainEnv
from tests.helpers.tasks import RandomPolicy, assert_same, golden, tasks, words
from textenv import TextEnv, TextMDP


@settings(max_examples=60, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 2**32), gold=st.booleans(), bound=st.booleans(), pure=st.booleans())
def test_an_environment_equals_the_plainest_core(
    arguments: dict[str, Any], seed: int, gold: bool, bound: bool, pure: bool
) -> None:
    """Observations, rewards, terminations and infos: with and without masks, shaping, gold reward, policy, tables."""
    arguments |= {"gold_reward": golden if gold else None}
    arguments |= {"reward": PureLetters(arguments["prompts"])} if pure else {}
    policy = RandomPolicy(len(arguments["tokenizer"])) if bound else None
    pair = TextEnv(TextMDP(**arguments), policy), PlainEnv(TextMDP(**arguments), policy)
    assert_same(*(random_trajectory(env, seed) for env in pair))


@pytest.mark.parametrize("wrong", [{"kl_coef": 0.3}, {"max_new_tokens": 4}, {"gold_reward": golden}])
def test_the_comparison_sees_a_difference(wrong: dict[str, Any]) -> None:
    """Negative control: another beta, another length, a gold score that the other has not."""
    right = {"kl_coef": 0.25, "max_new_tokens": 3}
    pair = TextEnv(TextMDP(**words(**right))), PlainEnv(TextMDP(**words(**right | wrong)))
    with pytest.raises((AssertionError, ValueError)):
        assert_same(*(random_trajectory(env, 0) for env in pair))


@pytest.mark.parametrize("kind", [int, np.int64, np.int32, np.uint8, np.array])
def test_actions_of_every_integer_type(kind: Any) -> None:
    """An action may be an integer of any type; another token gives another step."""
    env, same = (TextEnv(TextMDP(**words())) for _ in range(2))
    for each in (env, same):
        each.reset(seed=0)
    result = env.step(kind(2))
    assert_same(result, same.step(2))
    assert type(result[1]) is float and result[2] is False
    same.reset(seed=0)
    assert same.step(3)[0]["input_ids"].tolist() != result[0]["input_ids"].tolist()


@pytest.mark.parametrize("pure", [False, True])
def test_a_policy_may_be_bound_within_an_episode(pure: bool) -> None:
    """The episode goes on, of a tabulated task too, and goes on again without the policy."""
    arguments = words(max_new_tokens=6)
    arguments |= {"reward": PureLetters(arguments["prompts"])} if pure else {}
    pair, results = (TextEnv(TextMDP(**arguments)), PlainEnv(TextMDP(**arguments))), ([], [])
    for each, steps in zip(pair, results, strict=True):
        each.reset(seed=3)
        steps.append(each.step(1))
        each.bind_policy(lambda ids, mask: np.zeros((len(ids), 4)))
        steps.append(each.step(2))
        each.bind_policy(None)
        steps += [each.step(3), each.step(0)]
    assert_same(*results)
    assert "kl_policy" in results[0][1][-1]["reward_terms"] and "kl_policy" not in results[0][2][-1]["reward_terms"]
