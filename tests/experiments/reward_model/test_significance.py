"""Whether a model is better than a guess: the test over groups, by enumeration and by its size under random models."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.reward_model.checks import FEWEST
from experiments.reward_model.pairs import Pair
from experiments.reward_model.significance import SIGNIFICANCE, SignTest, sign_test


def pairs(count: int) -> list[Pair]:
    """Different pairs, each of a prompt of its own."""
    return [Pair(f"p{i}", "a", "b") for i in range(count)]


def found(margin: object, of: list[Pair]) -> SignTest:
    """The test of pairs of several prompts."""
    return sign_test(np.asarray(margin, dtype=np.float64), of, one_prompt=False)


def ranked_lists(num_prompts: int, size: int) -> list[Pair]:
    """All pairs of ranked lists: of one prompt, `size` completions."""
    both = list(combinations(range(size), 2))
    return [Pair(f"p{i}", str(good), str(bad)) for i in range(num_prompts) for good, bad in both]


def test_of_one_pair_a_prompt_it_is_the_sign_test() -> None:
    """p is the share of all 2^n patterns that are right as often; a guess passes as often as allowed, and not never."""
    patterns = np.array(list(product([-1.0, 1.0], repeat=9)))
    right = (patterns > 0).sum(axis=1)
    for count in range(10):
        test = found(patterns[right == count][0], pairs(9))
        assert (test.right, test.num_pairs, test.num_groups) == (count, 9, 9)
        assert test.p_value == pytest.approx((right >= count).mean())
    passed = np.mean([found(pattern, pairs(9)).p_value <= SIGNIFICANCE for pattern in patterns])
    assert 0 < passed <= SIGNIFICANCE


@given(st.lists(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=5), min_size=1, max_size=7))
def test_it_is_the_share_of_sign_flips_of_whole_prompts(margins: list[list[float]]) -> None:
    """By enumeration, where prompts have several pairs."""
    named = [Pair(f"p{i}", f"a{k}", "b") for i, group in enumerate(margins) for k in range(len(group))]
    sums = np.array([sum(group) for group in margins])
    flips = np.array(list(product([-1.0, 1.0], repeat=len(sums)))) @ np.abs(sums)
    assert found(np.concatenate(margins), named).p_value == pytest.approx((flips >= sums.sum()).mean())


@pytest.mark.parametrize("size", [4, 9])
def test_a_random_model_of_ranked_lists_seldom_passes(size: int) -> None:
    """At most as often as allowed; control: it does more often where pairs of a prompt count as independent."""
    rng = np.random.default_rng(0)
    of = ranked_lists(20, size)
    good, bad = np.array([[int(pair.chosen), int(pair.rejected)] for pair in of]).T
    prompt = np.repeat(np.arange(20), size * (size - 1) // 2)
    scores = rng.normal(size=(400, 20, size))
    margins = scores[:, prompt, good] - scores[:, prompt, bad]
    passed = np.mean([found(margin, of).p_value <= SIGNIFICANCE for margin in margins])
    by_pairs = np.mean([found(margin, pairs(len(of))).p_value <= SIGNIFICANCE for margin in margins])
    assert 0.02 < passed < 0.075 < by_pairs  # two standard errors of 400 draws are 0.022
    assert found(np.ones(len(of)), of).p_value == pytest.approx(2.0**-20)


def test_where_all_pairs_have_one_prompt_a_group_is_two_completions() -> None:
    """A pair and its contradiction are one; control: of a file with several prompts, one prompt is one group."""
    of = [Pair("p", f"a{i}", f"b{i}") for i in range(6)]
    test = sign_test(np.ones(6), of, one_prompt=True)
    assert (test.num_groups, test.p_value) == (6, pytest.approx(2.0**-6))
    assert found(np.ones(6), of)[2:] == (1, 0.5)
    both = sign_test(np.array([1.0, -1.0]), [Pair("p", "a", "b"), Pair("p", "b", "a")], one_prompt=True)
    assert both == (1, 2, 1, 1.0)


def test_copies_and_ties_are_no_evidence() -> None:
    """A pair counts once; one with margin 0 does not count. Control: different pairs do."""
    four = found(np.ones(4), pairs(4))
    assert found(np.ones(400), pairs(4) * 100) == four == found([1.0] * 4 + [0.0] * 9, pairs(13))
    assert four.p_value == pytest.approx(1 / 16) and found(np.ones(FEWEST), pairs(FEWEST)).p_value <= SIGNIFICANCE
    assert FEWEST == 5 and found(np.zeros(3), pairs(3)).p_value == 1.0


def test_many_groups_of_many_sizes() -> None:
    """As the normal approximation says, and within a second."""
    rng = np.random.default_rng(0)
    prompt = np.sort(rng.integers(0, 3000, 20000))
    of = [Pair(f"p{i}", f"a{k}", "b") for k, i in enumerate(prompt)]
    margin = np.where(rng.random(20000) < 0.506, 1.0, -1.0)
    sums = np.bincount(prompt, margin)
    z = (sums.sum() - 1) / np.sqrt((sums**2).sum())  # sums move in steps of 2
    tail = 0.5 * math.erfc(z / math.sqrt(2))
    assert 0.001 < tail < 0.4 and found(margin, of).p_value == pytest.approx(tail, rel=0.02)
