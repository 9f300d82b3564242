"""Rank correlation within prompts and rank differences, against their definitions and by enumeration."""

from __future__ import annotations

import math
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.rescore.ranks import RankCorrelation, rank_correlation, rank_differences

SCORES = st.lists(st.integers(-5, 5), min_size=3, max_size=12)


def correlation(own: object, new: object, prompts: str = "", texts: str = "") -> RankCorrelation:
    """Of completions; `prompts` and `texts` have a letter for each, by default one prompt and different texts."""
    first, second = (np.asarray(scores, dtype=np.float64) for scores in (own, new))
    names = list(texts) or [str(i) for i in range(len(first))]
    return rank_correlation(list(zip(prompts or "p" * len(first), names, strict=True)), first, second)


@given(SCORES)
def test_ranks_do_not_depend_on_units(own: list[int]) -> None:
    """Any increasing function of a score: the correlation is 1 and no rank differs; a decreasing one: -1."""
    values = np.array(own, float)
    if np.ptp(values) == 0:
        assert correlation(values, values) == (None, None, len(values))
        return
    assert correlation(values, np.exp(values)).value == pytest.approx(1.0)
    assert not rank_differences(values, 3 * values + 7).any()
    assert correlation(values, -(values**3)).value == pytest.approx(-1.0)
    assert np.abs(rank_differences(values, -values)).max() > 0  # control


@given(SCORES, st.data())
def test_of_one_prompt_it_is_spearmans(own: list[int], data: st.DataObject) -> None:
    """Ties included; without ties the differences of ranks are those of its formula."""
    new = data.draw(st.lists(st.integers(-5, 5), min_size=len(own), max_size=len(own)))
    if np.ptp(own) and np.ptp(new):
        assert correlation(own, new).value == pytest.approx(stats.spearmanr(own, new).statistic)
    order = np.array(data.draw(st.permutations(range(6))), float)
    differences = rank_differences(np.arange(6.0), order)
    assert (differences * 6).tolist() == pytest.approx((order - np.arange(6)).tolist())
    assert correlation(np.arange(6), order).value == pytest.approx(1 - 6 * ((6 * differences) ** 2).sum() / (6 * 35))


@pytest.mark.parametrize("own", [[0, 1, 2, 3, 4], [0, 0, 1, 5, 5]])
def test_by_chance_is_the_standard_deviation_over_all_orders(own: list[float]) -> None:
    """Of one prompt of five completions, 1 / sqrt(n - 1), ties or not."""
    found = [correlation(own, order) for order in permutations(range(5))]
    values = np.array([each.value for each in found])
    assert values.mean() == pytest.approx(0, abs=1e-12) and values.std() == pytest.approx(0.5)
    assert found[0].by_chance == pytest.approx(0.5)


def test_by_chance_of_several_prompts() -> None:
    """Over all orders within each prompt; the prompt with one completion has no part in it."""
    own, prompts = [3, 1, 2, 7, 9, 9, 8, 0], "aaabbbbc"
    orders = product(permutations([1, 2, 3]), permutations([4, 4, 5, 6]))
    found = [correlation(own, [*first, *second, 9], prompts) for first, second in orders]
    assert np.std([each.value for each in found]) == pytest.approx(found[0].by_chance)
    assert found[0].num_distinct == 8


def test_differences_between_prompts_are_no_agreement() -> None:
    """Both rewards prefer prompt b, and disagree about the completions of each; control: as one prompt they agree."""
    own, new = [0, 1, 2, 10, 11, 12], [2, 1, 0, 12, 11, 10]
    assert correlation(own, new, "aaabbb").value == pytest.approx(-1)
    assert (correlation(own, new).value or 0) > 0.5


def test_copies_are_no_further_evidence() -> None:
    """192 completions of 8 texts are 8; control: as different ones their spread by chance is much less."""
    rng = np.random.default_rng(0)
    own, new = rng.normal(size=(2, 8))
    copies = [np.repeat(scores, 24) for scores in (own, new)]
    once, many = correlation(own, new), correlation(*copies, texts="".join(letter * 24 for letter in "abcdefgh"))
    assert many == once and once.by_chance == pytest.approx(1 / math.sqrt(7)) and once.num_distinct == 8
    assert (correlation(*copies).by_chance or 1) < 0.1


def test_what_has_no_rank_correlation() -> None:
    """One completion more than prompts, where it is 1 or -1 always; equal scores; control: two more."""
    assert correlation([1, 2, 5], [1, 2, 5], "aab").value is None
    assert correlation([1, 2, 5, 6], [1, 2, 5, 6], "aabb").value == pytest.approx(1)
    assert correlation([1, 1, 2, 2], [1, 2, 3, 4], "aabb").value is None
    assert correlation([], []) == (None, None, 0)
    nan = float("nan")
    assert correlation([1, 2, nan, 3, 0], [1, nan, 2, 3, 0]) == (pytest.approx(1.0), pytest.approx(1 / math.sqrt(2)), 3)
