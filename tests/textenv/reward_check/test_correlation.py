"""Correlations within prompts, beside linear models whose coefficients are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from textenv.reward_check.correlation import centred, centred_ranks, correlation, partial_correlations

ROWS = 4000


def test_partial_correlations_are_those_of_a_linear_model() -> None:
    """y = a + 2 b + noise, where c = b + noise goes with y only through b. Control: the plain correlation of c."""
    rng = np.random.default_rng(0)
    a, b, noise, other = rng.normal(size=(4, ROWS))
    c, y = b + other, a + 2 * b + noise
    found = partial_correlations(y, np.stack([a, b, c], axis=1))
    # held: the variance of a, of b given c (1/2), and of c given b
    assert found == pytest.approx([1 / np.sqrt(2), 2 * np.sqrt(0.5) / np.sqrt(4 * 0.5 + 1), 0.0], abs=0.04)
    assert correlation(y, c) > 0.5  # control


def test_one_column_is_held_for_none() -> None:
    """Then it is the plain correlation."""
    rng = np.random.default_rng(1)
    x, y = centred(rng.normal(size=(2, 1, 50))[0]), centred(rng.normal(size=(2, 1, 50))[1])
    assert partial_correlations(y, x[:, None]) == pytest.approx([np.corrcoef(x, y)[0, 1]])


def test_columns_that_are_one_do_not_hide_each_other() -> None:
    """A column beside its double; a column that others add up to has none."""
    rng = np.random.default_rng(2)
    a, b, noise = rng.normal(size=(3, ROWS))
    twice = partial_correlations(a + noise, np.stack([a, 2 * a, b], axis=1))
    assert twice[:2] == pytest.approx(np.sqrt(0.5), abs=0.04)
    assert np.isnan(partial_correlations(a + noise, np.stack([a, b, a + b], axis=1))).all()
    assert np.isnan(partial_correlations(a, np.stack([a, b], axis=1))[1])  # the target is determined by a


@given(st.lists(st.lists(st.integers(-3, 3), min_size=5, max_size=5), min_size=1, max_size=4), st.floats(-9, 9))
def test_ranks_are_within_prompts(rows: list[list[int]], added: float) -> None:
    """What is added to a prompt changes nothing; equal values share a rank; the order is that of the values."""
    grid = np.array(rows, dtype=float)
    found = centred_ranks(grid).reshape(grid.shape)
    assert found.sum(axis=1) == pytest.approx(np.zeros(len(grid)))
    for ranks, values in zip(found, grid, strict=True):
        assert np.array_equal(np.sign(ranks[:, None] - ranks), np.sign(values[:, None] - values))
    moved = grid + added * np.arange(len(grid))[:, None].round()
    assert centred_ranks(np.round(moved, 6)) == pytest.approx(found.ravel())


def test_what_has_no_value_counts_as_the_mean() -> None:
    """It adds nothing to a correlation."""
    grid = np.array([[1.0, np.nan, 3.0]])
    assert centred(grid).tolist() == [-1.0, 0.0, 1.0] and centred_ranks(grid).tolist() == [-0.5, 0.0, 0.5]


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_correlation_has_no_unit(scale: float) -> None:
    """Also where values are tiny; a constant has none."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 100))
    assert correlation(scale * x, scale * (x + y)) == pytest.approx(correlation(x, x + y))
    assert np.isnan(correlation(np.zeros(100), x))
    assert np.isnan(correlation(centred(np.full((1, 100), 0.1 * scale)), x))
