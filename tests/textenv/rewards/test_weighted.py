"""Reward functions: their columns, their weighted sum, their two forms, and the values that they may return."""

from __future__ import annotations

from functools import wraps
from typing import Any

import numpy as np
import pytest

from tests.helpers.completions import score_lists
from tests.helpers.tasks import count_words, letter_values, make, words
from textenv import TextMDP, TextVectorEnv
from textenv.rewards import WeightedReward
from textenv.testing import play


def test_columns_reach_the_reward_with_their_prompts() -> None:
    """Each completion is scored with the fields of its own prompt, in one call; None for a prompt without fields."""
    calls = []

    def target(prompts: Any, completions: Any, completion_ids: Any, goal: Any, weight: Any, **columns: Any) -> Any:
        calls.append((list(prompts), list(completions), [list(ids) for ids in completion_ids], list(goal)))
        assert set(columns) == {"trainer_state", "log_extra", "log_metric"}
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


def test_which_fields_of_a_prompt_reach_the_reward() -> None:
    """`completion` does, which TRL drops; `completion_ids` is refused, as the README says."""

    def given(prompts: Any, completion: Any, **columns: Any) -> list[float]:
        return [float(each) for each in completion]

    mdp = TextMDP(**words(prompts=[{"prompt": "a", "completion": 3}], reward=given))
    one = np.array([0])
    assert mdp.score(mdp.finished(one, mdp.prompt_texts[one], np.array([[0]]), np.array([1]))).tolist() == [3.0]
    with pytest.raises(ValueError, match="the name 'completion_ids' is an argument of rewards"):
        TextMDP(**words(prompts=[{"prompt": "a", "completion_ids": [1]}]))


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
    assert score_lists(reward, ["a", "b"], ["", ""], [[0], [0]], {}).tolist() == [0.5, 0.5]


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


class BothForms:
    """A reward with both forms, which records which of them was called."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        """From lists."""
        self.called.append("lists")
        return letter_values(prompts, completions, completion_ids)

    def score_tokens(self, prompt: Any, tokens: Any, length: Any) -> Any:
        """From arrays: `letter_values` of the prompts of `words()`."""
        self.called.append("arrays")
        prompts = np.array([len(text) for text in words()["prompts"]])
        return prompts[prompt] / 8 + (np.arange(1, tokens.shape[1] + 1) * tokens).sum(axis=1) / 16


def test_a_reward_may_take_arrays() -> None:
    """`score_tokens` is called where a reward has it, with the same scores; an unlisted prompt needs the lists."""
    reward = BothForms()
    env, plain = make(words(reward=reward)), make(words())
    reward.called.clear()  # all completions, to tabulate them
    for prompt, completion in ((0, "b c"), (3, ""), (1, "a a a")):
        assert play(env, prompt, completion).rewards.tolist() == play(plain, prompt, completion).rewards.tolist()
    assert reward.called == ["arrays"] * 3
    assert play(env, "c a", "b").rewards.tolist() == play(plain, "c a", "b").rewards.tolist()
    assert reward.called[3:] == ["lists"]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (
            np.array([0.0, np.nan]),
            "'Broken' must return finite numbers, got nan, for the completion 'b' after the prompt 'b a b'",
        ),
        (np.zeros(3), "'Broken' must return one score per completion: 2, got 3"),
        (np.zeros((2, 1)), "'Broken' must return a list of numbers or None"),
        (None, "'Broken' must return one score per completion, got None"),
    ],
)
def test_scores_from_arrays_are_checked(scores: Any, message: str) -> None:
    """By the same rules as scores from lists."""

    class Broken(BothForms):
        def score_tokens(self, prompt: Any, tokens: Any, length: Any) -> Any:
            return scores

    mdp = TextMDP(**words())
    finished = mdp.finished(np.array([0, 1]), mdp.prompt_texts[:2], np.array([[1, 0], [2, 0]]), np.array([2, 2]))
    with pytest.raises(ValueError, match=message):
        WeightedReward(Broken()).score(finished)


def test_a_wrapped_reward_is_not_bypassed() -> None:
    """functools.wraps copies `score_tokens` of the inner function; the scores must still be the wrapper's."""

    def base(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        return [1.0] * len(prompts)

    base.score_tokens = lambda prompt, tokens, length: np.ones(len(prompt))  # type: ignore[attr-defined]

    @wraps(base)
    def doubled(*args: Any, **arguments: Any) -> list[float]:
        return [2 * score for score in base(*args, **arguments)]

    for reward, expected in ((base, 1.0), (doubled, 2.0)):
        env = make(words(3, prompts=["a"], reward=reward, kl_coef=0.0))
        env.reset()
        assert env.step(0)[1] == expected


def test_a_reward_may_change_its_lists() -> None:
    """The next reward function gets them unchanged."""
    received: list[Any] = []

    def clears(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        received.append(
            (list(prompts), list(completions), [list(ids) for ids in completion_ids], list(columns["label"]))
        )
        scores = [0.0] * len(prompts)
        for argument in (prompts, completions, *completion_ids, columns["label"]):
            argument.clear()
        return scores

    env = make(words(3, prompts=[{"prompt": "a", "label": 1}], reward=[clears, clears]))
    env.reset()
    env.step(1)
    env.step(0)
    assert len(received) == 2 and received[0] == received[1] == (["a"], ["a"], [[1, 0]], [1])
