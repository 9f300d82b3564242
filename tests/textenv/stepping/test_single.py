"""The fast path of `SingleEpisode`, in Python numbers, equals stepping with arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.envs import random_trajectory
from tests.helpers.tasks import assert_same, golden, tasks, words
from textenv import TextEnv, TextMDP
from textenv.stepping import SingleEpisode


def in_arrays(env: TextEnv) -> TextEnv:
    """The environment with every action passed on as an array of one number, which is stepped with arrays."""
    env.episodes.step_scalar = lambda action, *more: SingleEpisode.step_scalar(env.episodes, np.array(action), *more)  # type: ignore[method-assign]
    return env


@settings(max_examples=40, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 2**32), gold=st.booleans())
def test_numbers_equal_arrays(arguments: dict[str, Any], seed: int, gold: bool) -> None:
    """Observations, rewards, terminations and infos exactly, dense and sparse, with and without a gold reward."""
    arguments |= {"shaping": (), "gold_reward": golden if gold else None}
    plain, arrays = (TextEnv(TextMDP(**arguments)) for _ in range(2))
    assert_same(random_trajectory(plain, seed), random_trajectory(in_arrays(arrays), seed))


def test_which_path_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control of the comparison: one environment takes the fast path at every step, the other at none."""
    count = []
    step_table = SingleEpisode._step_table
    monkeypatch.setattr(SingleEpisode, "_step_table", lambda *args: (count.append(1), step_table(*args))[1])
    random_trajectory(TextEnv(TextMDP(**words())), 0)
    assert len(count) == 12
    random_trajectory(in_arrays(TextEnv(TextMDP(**words()))), 0)
    assert len(count) == 12


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


def test_a_policy_may_be_bound_within_an_episode() -> None:
    """Stepping with arrays continues the episode that the fast path started, and the fast path continues it again."""
    env, arrays = TextEnv(TextMDP(**words(max_new_tokens=6))), TextEnv(TextMDP(**words(max_new_tokens=6)))
    results: list[list[Any]] = [[], []]
    for each, steps in zip((env, in_arrays(arrays)), results, strict=True):
        each.reset(seed=3)
        steps.append(each.step(1))
        each.bind_policy(lambda ids, mask: np.zeros((len(ids), 4)))
        steps.append(each.step(2))
        each.bind_policy(None)
        steps += [each.step(3), each.step(0)]
    assert_same(*results)
    assert "kl_policy" in results[0][1][-1]["reward_terms"] and "kl_policy" not in results[0][2][-1]["reward_terms"]
