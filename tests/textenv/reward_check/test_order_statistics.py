"""Means over all groups, beside the enumeration of every group."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from textenv.reward_check.order_statistics import best_of_n, share_of_equal_groups

GRIDS = st.integers(1, 3).flatmap(
    lambda prompts: st.lists(
        st.lists(st.sampled_from([0.0, 1.0, 2.5, -3.0]), min_size=6, max_size=6), min_size=prompts, max_size=prompts
    )
)


@given(GRIDS, st.integers(1, 6))
def test_they_are_means_over_every_group(rows: list[list[float]], n: int) -> None:
    """Control: the largest of all completions is another number."""
    grid = np.array(rows)
    groups = [[list(group) for group in combinations(row, n)] for row in rows]
    best = np.mean([np.mean([max(group) for group in of_prompt]) for of_prompt in groups])
    equal = np.mean([np.mean([len(set(group)) == 1 for group in of_prompt]) for of_prompt in groups])
    assert best_of_n(grid, n) == pytest.approx(best)
    assert share_of_equal_groups(grid, n) == pytest.approx(equal)
    if n < 6 and len({max(group) for group in groups[0]}) > 1:
        assert best_of_n(grid[:1], n) < max(rows[0])  # control


def test_what_has_no_score_is_left_out() -> None:
    """A group of more completions than have a score is all of them; it is no group of equal scores."""
    grid = np.array([[1.0, np.nan, 3.0, 2.0], [np.nan, np.nan, np.nan, 5.0]])
    assert best_of_n(grid, 2) == pytest.approx((np.mean([3, 2, 3]) + 5) / 2)
    assert best_of_n(grid, 4) == pytest.approx((3 + 5) / 2)
    assert share_of_equal_groups(grid, 2) == 0.0
    assert np.isnan(share_of_equal_groups(grid, 4))


def test_many_completions_are_no_overflow() -> None:
    """One of 2,000 completions differs: a group of 1,000 has it half of the time."""
    grid = np.zeros((1, 2000))
    grid[0, 0] = 1.0
    assert best_of_n(grid, 1000) == pytest.approx(0.5)
    assert share_of_equal_groups(grid, 1000) == pytest.approx(0.5)
