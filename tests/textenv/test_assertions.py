"""Assertions about rewards hold where they should, and fail with the tokens and what each got."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tasks import make, words
from textenv import exact
from textenv.rewards import RewardError
from textenv.shaping import length_penalty, missing_eos_penalty, potential_based, repetition_penalty
from textenv.strategies import completions, prompts, texts
from textenv.testing import (
    assert_bounded,
    assert_invariant,
    assert_potential_based,
    assert_prefers,
    assert_rewards,
    play,
    score_of,
)

TAJ = gym.make("textenv/TajMahal-v0", kl_coef=0.0)
WHERE = "where is the taj mahal located"


def shouting(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
    """The share of capitals."""
    return [sum(c.isupper() for c in text) / max(len(text), 1) for text in completions]


def test_the_rewards_of_a_completion() -> None:
    """Whole or of one term; a wrong one is marked among all tokens; another number of them is refused."""
    env = gym.make("textenv/TajMahal-v0", kl_coef=0.1, shaping=length_penalty(0.5))
    episode = play(env, WHERE, "it is in agra")
    assert_rewards(env, "it is in agra", episode.rewards, prompt=WHERE)  # type: ignore[arg-type]
    assert_rewards(env, "it is in agra", [0, 0, 0, 0, episode.score or 0.0], prompt=WHERE, term="score")
    assert_rewards(env, "it is in agra", [-0.5] * 5, prompt=WHERE, term="length")
    with pytest.raises(AssertionError) as failed:
        assert_rewards(env, "it is in agra", [-0.5, -0.5, 0, -0.5, -0.5], prompt=WHERE, term="length")
    lines = str(failed.value).splitlines()
    assert "term 'length'" in lines[0] and WHERE in lines[1]
    assert [("<--" in line) for line in lines[2:]] == [False, False, True, False, False]
    assert [line.split()[1] for line in lines[2:6]] == ["it", "is", "in", "agra"]
    with pytest.raises(AssertionError, match="has 5 tokens, and 2 rewards are expected"):
        assert_rewards(env, "it is in agra", [0, 1], prompt=WHERE)
    with pytest.raises(ValueError, match="term must be one of score, kl_reference, length, got 'x'"):
        assert_rewards(env, "it is in agra", [0] * 5, prompt=WHERE, term="x")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_completion_gets_what_stepping_gives_it(data: st.DataObject) -> None:
    """For tokens of the strategies: the assertion holds for the rewards of `play`, and for no others."""
    env = make(words(4, max_new_tokens=3))
    prompt = data.draw(prompts(env))
    tokens = data.draw(completions(env, prompt))
    rewards = play(env, prompt, tokens).rewards
    assert_rewards(env, tokens, rewards, prompt=prompt)  # type: ignore[arg-type]
    t = data.draw(st.integers(0, len(tokens) - 1))
    with pytest.raises(AssertionError, match="<--"):
        assert_rewards(env, tokens, rewards + 0.1 * (np.arange(len(tokens)) == t), prompt=prompt)  # type: ignore[arg-type]


def test_preferences_bounds_and_invariances() -> None:
    """Of an environment and of a function; each example that fails is in the message, and no other."""
    assert_prefers(TAJ, [(WHERE, "it is in agra", "paris"), (WHERE, "the taj mahal is in agra india", "paris")])
    with pytest.raises(AssertionError) as failed:
        assert_prefers(TAJ, [(WHERE, "it is in agra", "paris"), (WHERE, "paris", "it is in agra")])
    assert str(failed.value).count("\n") == 1 and "'paris' has -1, 'it is in agra' has 1" in str(failed.value)
    with pytest.raises(AssertionError, match="must score more than 5 above the second"):
        assert_prefers(TAJ, [(WHERE, "it is in agra", "paris")], margin=5)
    assert_prefers(shouting, [("x", "AB", "ab")])
    assert_bounded(shouting, [("x", "Ab"), ("", ""), ("é", "É\U0001f600")], 0, 1)
    with pytest.raises(AssertionError, match=r"in \[0, 0.4\]:\n'x': 'Ab' has 0.5"):
        assert_bounded(shouting, [("x", "Ab"), ("x", "ab")], 0, 0.4)
    assert_invariant(shouting, [("x", "ab")], lambda text: text * 2)
    with pytest.raises(AssertionError, match="upper must not change a score:\n'x': 'ab' has 0, 'AB' has 1"):
        assert_invariant(shouting, [("x", "ab")], str.upper)
    assert score_of(TAJ, WHERE, "it is in agra") == 1.0


def correct(prompts: Any, completions: Any, completion_ids: Any, answer: Any) -> list[float]:
    """As rewards of TRL are written: a column by its name, and no others."""
    return [float(text == right) for text, right in zip(completions, answer, strict=True)]


def of_messages(prompts: Any, completions: Any, answer: Any, **columns: Any) -> list[float]:
    """A reward of conversations."""
    return [
        float(right in turns[-1]["content"] and asked[0]["role"] == "user")
        for asked, turns, right in zip(prompts, completions, answer, strict=True)
    ]


class Tabulated:
    """A reward with `score_tokens`, which takes the indices of a task's prompts."""

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    def score_tokens(self, prompt: Any, tokens: Any, length: Any) -> Any:
        raise AssertionError("there is no task")


def test_a_function_gets_the_columns_and_messages_of_its_prompt() -> None:
    """A row of a task's prompts: its fields, and messages as messages. Control: the reward sees another answer."""
    four, five = ({"prompt": "2 + 2 = ?", "answer": answer} for answer in ("4", "5"))
    assert_prefers(correct, [(four, "4", "5"), (five, "5", "4")])
    assert_bounded(correct, [(four, "4")], 1, 1)
    assert_invariant(correct, [(five, " 5")], str.upper)
    with pytest.raises(AssertionError, match="'4' has 0, '5' has 1"):
        assert_prefers(correct, [(five, "4", "5")])
    asked = [{"role": "user", "content": "2 + 2 = ?"}]
    assert_prefers(of_messages, [({"messages": asked, "answer": "4"}, "it is 4", "it is 5")])
    assert score_of(lambda prompts, **columns: [float(prompts[0] == asked)], asked, "") == 1.0
    assert score_of(Tabulated(), "x", "abc") == score_of(Tabulated(), {"prompt": "x", "answer": 1}, "abc") == 3.0


def length_or_none(completions: Any, **columns: Any) -> list[float | None]:
    """The number of letters; None where there is no letter."""
    return [float(len(text)) if text.isalpha() else None for text in completions]


def test_a_difference_of_the_margin_is_not_more_than_it() -> None:
    """The message says what is tested: 3 is not more than 2 above 1; control: it is more than 1.9 above it."""
    assert_prefers(length_or_none, [("x", "abc", "a")], margin=1.9)
    with pytest.raises(AssertionError, match="more than 2 above the second:\n'x': 'abc' has 3, 'a' has 1"):
        assert_prefers(length_or_none, [("x", "abc", "a")], margin=2)


def test_none_is_a_score_like_another_none() -> None:
    """It stays None: no change. Control: None in place of a number is one, out of bounds and not preferred."""
    assert_invariant(length_or_none, [("x", "1 2")], str.upper)
    with pytest.raises(AssertionError, match="'ab' has 2, 'ab!' has None"):
        assert_invariant(length_or_none, [("x", "ab")], lambda text: text + "!")
    with pytest.raises(AssertionError, match="'!' has None"):
        assert_bounded(length_or_none, [("x", "!")])
    with pytest.raises(AssertionError, match="'a' has 1, '!' has None"):
        assert_prefers(length_or_none, [("x", "a", "!")])


def test_without_examples_nothing_is_asserted() -> None:
    """Refused: a table of examples that is empty by mistake would pass."""
    none: list[Any] = []
    calls = [
        lambda: assert_prefers(shouting, none),
        lambda: assert_bounded(shouting, iter(none)),
        lambda: assert_invariant(shouting, none, str.upper),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="at least one"):
            call()


def test_columns_are_for_functions() -> None:
    """An environment has those of its own prompts; a reward that needs one it was not given names it."""
    with pytest.raises(ValueError, match="An environment has the columns of its own prompts"):
        score_of(TAJ, {"prompt": WHERE, "answer": "4"}, "it is in agra")
    with pytest.raises(RewardError, match="answer"):
        score_of(correct, "2 + 2 = ?", "4")


@pytest.mark.parametrize(
    ("term", "changes"),
    [
        (potential_based(lambda ids, mask: mask.sum(axis=1) ** 2.0), False),
        (potential_based(lambda ids, mask: (ids == 2).sum(axis=1) * 1.5), False),
        (length_penalty(0.1), True),
        (repetition_penalty(0.1), True),
        (missing_eos_penalty(1.0), True),
        (potential_based(lambda ids, mask: mask.sum(axis=1) * 1.0, gamma=0.9), True),
    ],
)
def test_a_term_is_potential_based_if_it_changes_no_optimal_policy(term: Any, changes: bool) -> None:
    """As pi* with and without it says, by enumeration; what fails is shown by two completions."""
    env = gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=3, num_prompts=2)
    shaped = gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=3, num_prompts=2, shaping=term)
    same = np.allclose(exact.solve(env).log_probs, exact.solve(shaped).log_probs, atol=1e-9)
    assert same != changes
    if not changes:
        assert_potential_based(term, env)
        return
    with pytest.raises(AssertionError, match="changes the optimal policy: its sums over two completions of") as failed:
        assert_potential_based(term, env)
    assert str(failed.value).count("\n") == 2


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_completions_of_the_strategies_are_what_the_task_allows(data: st.DataObject) -> None:
    """Whole ones end at EOS or at the limit, beginnings lead to a state, texts are those of whole ones."""
    prompt = data.draw(prompts(TAJ))
    whole = data.draw(completions(TAJ, prompt))
    assert play(TAJ, prompt, whole).finish_reason in ("stop", "length")
    beginning = data.draw(completions(TAJ, prompt, finished=False))
    TAJ.reset(options={"prompt": prompt, "completion": beginning})
    text = data.draw(texts(TAJ, prompt))
    assert play(TAJ, prompt, text).completion == text
