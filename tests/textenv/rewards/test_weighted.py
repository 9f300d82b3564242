"""Reward functions: their columns, their weighted sum, and the values that they may return."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.helpers.tasks import (
    count_words,
    letter_values,
    make,
    words,
)
from textenv import TextMDP, TextVectorEnv
from textenv.rewards import WeightedReward
from textenv.testing import play


def test_columns_reach_the_reward_with_their_prompts() -> None:
    """Each completion is scored with the fields of its own prompt, in one call; None for a prompt without fields."""
    calls = []

    def target(prompts: Any, completions: Any, completion_ids: Any, goal: Any, weight: Any, **columns: Any) -> Any:
        calls.append((list(prompts), list(completions), [list(ids) for ids in completion_ids], list(goal)))
        assert not columns
        return [0.0 if g is None else w * (y == g) for y, g, w in zip(completions, goal, weight, strict=True)]

    rows = [{"prompt": "a", "goal": "b", "weight": 2.0}, {"prompt": "b a", "goal": "c", "weight": 3.0}]
    envs = TextVectorEnv(TextMDP(**words(prompts=rows, reward=target, kl_coef=0.0, max_new_tokens=2)), 6)
    envs.reset(seed=0)
    drawn = envs.episodes.state.prompt.tolist()
    assert set(drawn) == {0, 1}
    envs.step(np.array([2, 3, 2, 3, 2, 3]))
    rewards = envs.step(np.zeros(6, dtype=int))[1]
    assert rewards.tolist() == [{(0, 0): 2.0, (1, 1): 3.0}.get((p, row % 2), 0.0) for row, p in enumerate(drawn)]
    prompts, completions, ids, goals = calls.pop()
    assert not calls and prompts == [rows[p]["prompt"] for p in drawn] and goals == [rows[p]["goal"] for p in drawn]
    assert completions == ["b", "c"] * 3 and ids == [[2, 0], [3, 0]] * 3
    unlisted = make(words(prompts=rows, reward=target, kl_coef=0.0))
    assert play(unlisted, [2], "b").score == 0.0 and calls[-1][-1] == [None]


def test_several_reward_functions_are_weighted_and_none_abstains() -> None:
    """score = sum of weight x score over the functions that do not return None."""

    def odd(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float | None]:
        return [10.0 if len(ids) % 2 else None for ids in completion_ids]

    def as_array(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> np.ndarray:
        return np.ones(len(prompts), dtype=np.float32)

    arguments = words(reward=[count_words, odd, as_array], reward_weights=[1.0, 0.5, -2.0], kl_coef=0.0)
    env = make(arguments)
    assert play(env, 0, "a").score == 1 - 2  # two tokens: `odd` abstains
    assert play(env, 0, "a b").score == 2 + 5 - 2
    assert play(make(words(reward=[count_words, odd])), 0, "a b").score == 12  # weights are 1 by default


def test_a_torch_tensor_is_a_list_of_scores() -> None:
    """A reward function may return a tensor."""
    import torch

    reward = WeightedReward(lambda prompts, **_: torch.tensor([0.5] * len(prompts)))
    assert reward(["a", "b"], ["", ""], [[0], [0]], {}).tolist() == [0.5, 0.5]


def test_columns_reach_the_gold_reward_and_several_are_summed() -> None:
    """It gets the fields of its own prompt; several are summed, whatever the reward's weights, and None abstains."""

    def goal(prompts: Any, completions: Any, completion_ids: Any, target: Any) -> list[float | None]:
        return [None if t is None else float(y == t) for y, t in zip(completions, target, strict=True)]

    rows = [{"prompt": "a", "target": "b"}, {"prompt": "b a", "target": "c"}]
    weighted = {"reward": [letter_values, count_words], "reward_weights": [3.0, -1.0]}
    env = make(words(prompts=rows, gold_reward=[goal, count_words], **weighted))
    for prompt, completion, gold in (("a", [2], 2.0), ("a", [3], 1.0), ("b a", [3], 2.0), ([2], [2, 3], 2.0)):
        env.reset(options={"prompt": prompt, "completion": completion})
        assert env.step(0)[-1]["gold_score"] == gold
