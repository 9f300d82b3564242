"""What a reward function may return: one number that is finite in float32, or None, for each completion."""

from __future__ import annotations

import itertools
import math
import re
from collections import OrderedDict, deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.completions import score_lists
from tests.helpers.tasks import make, mdp, words
from textenv.rewards import RewardError, WeightedReward
from textenv.rewards.scores import Scores
from textenv.shaping import length_penalty

PROMPTS, COMPLETIONS, IDS = ["a", "b a b"], ["b", "a b"], [[2, 0], [1, 2, 0]]
LARGEST = float(np.finfo(np.float32).max)


def score(returned: Any, **arguments: Any) -> list[float]:
    """The scores of two completions by a function that returns `returned`."""
    reward = WeightedReward(lambda prompts, completions, completion_ids: returned, **arguments)
    return score_lists(reward, PROMPTS, COMPLETIONS, IDS, {}).tolist()


ACCEPTED: list[tuple[Any, list[float]]] = [
    ([0.5, 2], [0.5, 2.0]),
    ((True, False), [1.0, 0.0]),
    ([np.float32(0.5), np.int8(3)], [0.5, 3.0]),
    ([np.bool_(True), np.array(2.5)], [1.0, 2.5]),
    ([torch.tensor(0.5), torch.tensor(2, dtype=torch.int64)], [0.5, 2.0]),
    ([torch.tensor(0.25, dtype=torch.bfloat16, requires_grad=True), 1], [0.25, 1.0]),
    ([Fraction(1, 4), 1e20], [0.25, 1e20]),
    (np.array([1, 2]), [1.0, 2.0]),
    (np.array([True, False]), [1.0, 0.0]),
    (np.array([0.5, 1.5], dtype=np.float16), [0.5, 1.5]),
    (np.array([1.0, 2], dtype=object), [1.0, 2.0]),
    (torch.tensor([0.5, 1.5]), [0.5, 1.5]),
    (torch.tensor([True, False]), [1.0, 0.0]),
    (torch.tensor([1.0, 2.0], requires_grad=True), [1.0, 2.0]),
    ([LARGEST, -LARGEST], [LARGEST, -LARGEST]),
    (range(2), [0.0, 1.0]),
    (deque([1.0, 2.0]), [1.0, 2.0]),
    ({0: 1.0, 1: 2.0}.values(), [1.0, 2.0]),
    ([np.zeros(1), 1.0], [0.0, 1.0]),
    ([torch.ones(1, requires_grad=True), np.array([[2]])], [1.0, 2.0]),
    (list(torch.tensor([[0.5], [1.5]])), [0.5, 1.5]),
    (list(np.array([[0.5], [1.5]])), [0.5, 1.5]),
    (torch.tensor([[0.5], [1.5]], requires_grad=True), [0.5, 1.5]),
    (torch.tensor([[1], [2]]), [1.0, 2.0]),
]


@pytest.mark.parametrize(("returned", "expected"), ACCEPTED)
def test_numbers_of_every_library_are_scores(returned: Any, expected: list[float]) -> None:
    """Iterables, arrays and tensors of one dimension; numbers of Python, numpy and torch, alone or in arrays."""
    assert score(returned) == expected


@pytest.mark.parametrize(
    "stream",
    [
        lambda completions: (float(len(each)) for each in completions),
        lambda completions: map(len, completions),
        lambda completions: filter(None, map(len, completions)),
        lambda completions: (torch.tensor([float(len(each))]) for each in completions),
    ],
)
def test_iterators_are_read_once(stream: Any) -> None:
    """Generators, `map`; a None among their members is no score."""
    reward = WeightedReward(lambda completions, **_: stream(completions))
    assert score_lists(reward, PROMPTS, COMPLETIONS, IDS, {}).tolist() == [1.0, 3.0]
    partly = WeightedReward([lambda **_: iter([None, 2.0]), lambda **_: [0.5, 0.5]])
    assert score_lists(partly, PROMPTS, COMPLETIONS, IDS, {}).tolist() == [0.5, 2.5]


def test_an_iterator_that_fails_is_the_functions_error() -> None:
    """One that raises, with the line that did; one of another length, or without an end."""

    def broken(prompts: Any, **_: Any) -> Iterator[float]:
        for _ in prompts:
            raise OSError("no judge")
            yield 0.0

    with pytest.raises(RewardError, match=r"'broken' failed at .*test_scores\.py:\d+ with OSError: no judge"):
        score_lists(WeightedReward(broken), PROMPTS, COMPLETIONS, IDS, {})
    with pytest.raises(RewardError, match="one score per completion: 1, got 0"):
        score_lists(WeightedReward(lambda **_: iter(())), PROMPTS[:1], COMPLETIONS[:1], IDS[:1], {})
    with pytest.raises(RewardError, match="one score per completion: 2, got more"):
        score_lists(WeightedReward(lambda **_: itertools.count()), PROMPTS, COMPLETIONS, IDS, {})


def test_a_masked_entry_and_none_are_no_score() -> None:
    """Beside a function that scores both completions, they add nothing."""
    for returned in ([None, 1.0], np.array([None, 1.0], dtype=object), np.ma.array([9.0, 1.0], mask=[True, False])):
        reward = WeightedReward([lambda **_: [0.5, 0.5], lambda *, value=returned, **_: value])
        assert score_lists(reward, PROMPTS, COMPLETIONS, IDS, {}).tolist() == [0.5, 1.5]


NO_LISTS = [
    "11",
    b"11",
    bytearray(b"11"),
    memoryview(b"11"),
    {0: 1.0, 1: 2.0},
    OrderedDict(a=1.0, b=2.0),
    {1.0, 2.0},
    frozenset({1.0, 2.0}),
    {0: 1.0, 1: 2.0}.keys(),
    map(str, (1, 2)),
    [(1, 3), (2, 4)],
    deque(["1", "2"]),
    1.0,
    np.float64(1.0),
    torch.tensor(1.0),
    np.zeros((2, 1)),
    torch.zeros(2, 2),
    [[1.0], [2.0]],
    [(1.0,), 2.0],
    [np.zeros(2), 1.0],
    [torch.zeros(2), 1.0],
    [np.zeros(0), 1.0],
    [np.array(["1"]), 1.0],
    [torch.ones(1, dtype=torch.complex64), 1.0],
    torch.zeros(2, 1, 1),
    [1.0, "2"],
    ["nan", "inf"],
    [b"1", b"2"],
    [1 + 0j, 2.0],
    [np.complex64(1), 2.0],
    [{}, 1.0],
    [NotImplemented, 1.0],
    [object(), 1.0],
    [np.timedelta64(1, "s"), np.timedelta64(2, "s")],
    np.array(["1", "2"]),
    np.array([1j, 2j]),
    np.array([1, 2], dtype="timedelta64[s]"),
    np.array([{}, 1.0], dtype=object),
]


@pytest.mark.parametrize("returned", NO_LISTS, ids=lambda value: re.sub(" at 0x.*", "", str(value))[:40])
def test_what_is_no_list_of_numbers_is_refused(returned: Any) -> None:
    """Also where it has as many members as there are completions; the error has the value and the function."""
    with pytest.raises(
        RewardError, match=r"'<lambda>' must return a list of numbers or None.*got .*test_scores\.py:\d+"
    ):
        score(returned)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (1e39, r"1e\+39 \(float32 ends at 3.4e\+38\)"),
        (-1e308, r"-1e\+308 \(float32"),
        (10**39, r"1e\+39"),
        (10**400, "inf"),
        (-(10**400), "-inf"),
        (Fraction(10**400, 3), "inf"),
        (np.float16(np.inf), "inf"),
        (torch.tensor(math.nan), "nan"),
    ],
)
@pytest.mark.parametrize("form", [list, tuple, lambda values: np.array(values, dtype=object)])
def test_numbers_that_are_not_finite_in_float32_are_refused(value: Any, shown: str, form: Any) -> None:
    """The error has the number, and the prompt and completion that it belongs to."""
    with pytest.raises(RewardError, match=rf"finite numbers, got {shown}.* completion 'a b' after the prompt 'b a b'"):
        score(form([1.0, value]))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2))
def test_every_float32_is_a_score(values: list[float]) -> None:
    """Unchanged, from a list, an array of float32 and a tensor."""
    for returned in (values, np.array(values, dtype=np.float32), torch.tensor(values, dtype=torch.float32)):
        assert score(returned) == values


@given(st.floats().filter(lambda x: not abs(x) <= LARGEST), st.integers(0, 1))
def test_no_other_float_is_a_score(value: float, row: int) -> None:
    """Neither nan nor infinities, nor what becomes one in float32."""
    values = [0.0, 0.0]
    values[row] = value
    with pytest.raises(RewardError, match=f"finite numbers, got .* completion {COMPLETIONS[row]!r}"):
        score(values)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_one_score_a_completion(count: int) -> None:
    """The error has both numbers, and says with which completion the function fails alone."""
    message = rf"one score per completion: 2, got {count}.*alone is the completion 'b' after the prompt 'a'"
    if count == 1:  # as it should be, for one completion
        message = (
            "one score per completion: 2, got 1, for a batch of 2 completions.*None of the completions fails alone"
        )
    with pytest.raises(RewardError, match=message):
        score([1.0] * count)


def test_a_weighted_sum_is_finite_in_float32() -> None:
    """The error names the completion whose sum is too large."""
    large = WeightedReward([lambda **_: [3e38, 1.0], lambda **_: [1.0, 3e38]], [1.0, 1e3])
    with pytest.raises(
        RewardError, match=r"weighted sum .*got 3.*e\+41 for the completion 'a b' .*lower reward_weights"
    ):
        score_lists(large, PROMPTS, COMPLETIONS, IDS, {})
    opposite = WeightedReward([lambda **_: [1e39, 0.0], lambda **_: [-1e39, 0.0]])
    with pytest.raises(RewardError, match=r"got 1e\+39"):  # each of them is checked
        score_lists(opposite, PROMPTS, COMPLETIONS, IDS, {})
    ignored = WeightedReward(lambda **_: [math.nan, 0.0], [0.0])
    with pytest.raises(RewardError, match="got nan"):
        score_lists(ignored, PROMPTS, COMPLETIONS, IDS, {})


@pytest.mark.parametrize("weight", [math.nan, math.inf, 1e39])
def test_weights_are_finite_in_float32(weight: float) -> None:
    """A weight of another kind is refused when the task is made."""
    with pytest.raises(ValueError, match="reward_weights must be one finite number per function"):
        mdp(reward_weights=[weight])


def test_a_large_score_is_a_reward() -> None:
    """1e20 is finite: the step has it as its reward."""
    env = make(words(reward=lambda prompts, **_: [1e20] * len(prompts), kl_coef=0.0))
    env.reset(seed=0)
    assert env.step(0)[1] == 1e20


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e39, -1e300])
def test_shaping_terms_are_finite_in_float32(value: float) -> None:
    """The error names the term; a finite one is accepted."""

    def crooked(transitions: Any) -> Any:
        return np.full(transitions.tokens.shape, value)

    env = make(words(shaping=[crooked]))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"'crooked' must return finite numbers, \[B, T\] = \(1, 1\).*float32"):
        env.step(1)
    env = make(words(shaping=[length_penalty(1e20)]))
    env.reset(seed=0)
    assert env.step(1)[-1]["reward_terms"]["length"] == -1e20


@pytest.mark.parametrize("wrong", [["1.0"], [[1 + 0j]], [[None]], "a", None])
def test_shaping_terms_are_arrays_of_numbers(wrong: Any) -> None:
    """Anything else is refused by the same rule, not by an error of numpy's."""

    def crooked(transitions: Any) -> Any:
        return wrong

    env = make(words(shaping=[crooked]))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="'crooked' must return finite numbers"):
        env.step(1)


def test_one_score_is_selected_with_its_none() -> None:
    """A completion to which the function does not apply stays one."""
    scores = Scores(np.array([1.0, 0.0]), np.array([False, True]))
    assert scores.select(1).none == [True] and scores.select(0).none == [False]
    assert scores.select(0).values == [1.0] and Scores(np.ones(2), None).select(0).none is None
