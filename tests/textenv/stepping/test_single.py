"""A text that is stepped in Python's numbers is the same text stepped in arrays."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.envs import played
from tests.helpers.tasks import assert_same, golden, tasks, words
from textenv import TextEnv, TextMDP
from textenv.stepping import SingleEpisode


def in_arrays(env: TextEnv) -> TextEnv:
    """The environment, with every action handed on as an array of one number: so it is stepped in arrays."""
    env.episodes.step_scalar = lambda action: SingleEpisode.step_scalar(env.episodes, np.array(action))  # type: ignore[method-assign]
    return env


@settings(max_examples=40, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 2**32), gold=st.booleans())
def test_numbers_say_what_arrays_say(arguments: dict[str, Any], seed: int, gold: bool) -> None:
    """Observations, rewards, ends and infos, to the last digit, dense and sparse, with and without a gold reward."""
    arguments |= {"shaping": (), "gold_reward": golden if gold else None}
    plain, arrays = (TextEnv(TextMDP(**arguments)) for _ in range(2))
    assert_same(played(plain, seed), played(in_arrays(arrays), seed))


def test_which_step_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control of the comparison: the one environment writes numbers at every step, the other at none."""
    count = []
    write = SingleEpisode._step_table
    monkeypatch.setattr(SingleEpisode, "_step_table", lambda *given: (count.append(1), write(*given))[1])
    played(TextEnv(TextMDP(**words())), 0)
    assert len(count) == 12
    played(in_arrays(TextEnv(TextMDP(**words()))), 0)
    assert len(count) == 12


@pytest.mark.parametrize("kind", [int, np.int64, np.int32, np.uint8, np.array])
def test_a_token_is_a_token(kind: Any) -> None:
    """An action may be any kind of whole number; another token is another step."""
    env, same = (TextEnv(TextMDP(**words())) for _ in range(2))
    for each in (env, same):
        each.reset(seed=0)
    said = env.step(kind(2))
    assert_same(said, same.step(2))
    assert type(said[1]) is float and said[2] is False
    same.reset(seed=0)
    assert same.step(3)[0]["input_ids"].tolist() != said[0]["input_ids"].tolist()


def test_a_policy_may_be_bound_in_the_middle_of_a_text() -> None:
    """The step in arrays goes on with the text that the step in numbers began, and back."""
    env, arrays = TextEnv(TextMDP(**words(max_new_tokens=6))), TextEnv(TextMDP(**words(max_new_tokens=6)))
    said: list[list[Any]] = [[], []]
    for each, told in zip((env, in_arrays(arrays)), said, strict=True):
        each.reset(seed=3)
        told.append(each.step(1))
        each.bind_policy(lambda ids, mask: np.zeros((len(ids), 4)))
        told.append(each.step(2))
        each.bind_policy(None)
        told += [each.step(3), each.step(0)]
    assert_same(*said)
    assert "kl_policy" in said[0][1][-1]["reward_terms"] and "kl_policy" not in said[0][2][-1]["reward_terms"]


def test_what_a_toy_scores() -> None:
    """The weights along each text, summed one by one; other weights, other scores."""
    found = []
    for task_seed in (0, 1):
        env: Any = gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=3, task_seed=task_seed).unwrapped
        reward, weights = env.mdp.reward.functions[0], env.mdp.reward.functions[0].weights
        answers = [[1, 2, 3], [3, 0], [0], [2, 1, 0], [1, 1]]
        for prompt in (0, 1):
            for answer in answers:
                expected, last = 0.0, 0
                for t, token in enumerate(answer):
                    expected, last = expected + weights[prompt, t, last, token], token
                tokens, length = np.array([answer]), np.array([len(answer)])
                assert reward.score_tokens(np.array([prompt]), tokens, length)[0] == pytest.approx(expected, abs=1e-12)
                found.append(expected)
    half = len(found) // 2
    assert all(a != b for a, b in zip(found[:half], found[half:], strict=True))  # negative control
