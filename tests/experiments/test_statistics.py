"""Interquartile means, paired differences and their bootstrap intervals: by hand, by enumeration, by simulation."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.statistics import Estimate, interquartile_mean, paired_difference
from tests.helpers.batches import properties

VALUES = [0.31, 1.93, -0.52, 4.1, 2.27]


def iqm(values: list[float]) -> float:
    """The mean without the lowest and the highest quarter, rounded down to whole values."""
    cut = len(values) // 4
    middle = sorted(values)[cut : len(values) - cut]
    return sum(middle) / len(middle)


def mean(values: list[float]) -> float:
    """The mean."""
    return sum(values) / len(values)


def paired(values: list[float]) -> Estimate:
    """Values as differences of seed 0, 1, ..."""
    seeds = range(len(values))
    return paired_difference({i: values[i] + 10.0 * i for i in seeds}, {i: 10.0 * i for i in seeds})


# -- the values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5.0], 5.0),
        ([9.0, 1.0, 2.0], 4.0),  # fewer than four: the mean
        ([100.0, 2.0, 3.0, -50.0], 2.5),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 60.0, 1000.0], 3.5),  # two at each end; an eighth would be one
        ([1000.0, 60.0, 5.0, 4.0, 3.0, 2.0, 2.0, 1.0, 0.0], 3.2),
    ],
)
def test_the_interquartile_mean_by_hand(values: list[float], expected: float) -> None:
    """A quarter is dropped at each end, whatever the order."""
    assert interquartile_mean(values).value == pytest.approx(expected)


@properties
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=13))
def test_the_interquartile_mean_is_its_definition(values: list[float]) -> None:
    """Of any number of values."""
    assert interquartile_mean(values).value == pytest.approx(iqm(values), abs=1e-9)


@pytest.mark.filterwarnings("error")
def test_a_paired_difference_is_taken_seed_by_seed() -> None:
    """In whatever order the seeds are given; a difference that is the same for each seed has no spread.

    Control: the same values of other seeds spread.
    """
    first, second = {0: 1.0, 1: 5.0, 2: 3.0}, {2: 2.5, 0: 0.5, 1: 4.5}
    assert paired_difference(first, second) == (0.5, 0.5, 0.5)
    shuffled = paired_difference(first, {0: 2.5, 1: 0.5, 2: 4.5})
    assert shuffled.value == pytest.approx(0.5) and shuffled.low == -1.5 and shuffled.high == 4.5
    assert paired_difference(second, first).value == -0.5
    for wrong in ({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0, 3: 3.0}):
        with pytest.raises(ValueError, match=r"the same seeds on both sides, got \[0, 1, 2\] and"):
            paired_difference(first, wrong)


def test_a_paired_difference_is_a_mean() -> None:
    """Not an interquartile mean: an outlier counts."""
    assert paired([0.0, 1.0, 2.0, 97.0]).value == pytest.approx(25.0)


def test_one_seed_has_no_interval() -> None:
    """And an interval is shown after the value."""
    assert interquartile_mean([1.0]) == paired([1.0]) == (1.0, None, None)
    assert str(interquartile_mean([1.0])) == "1.000" and str(Estimate(1.0, 0.5, 2.25)) == "1.000 [0.500, 2.250]"


# -- the intervals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("estimate", "statistic"), [(interquartile_mean, iqm), (paired, mean)])
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_the_interval_has_the_quantiles_of_all_resamples(
    estimate: Callable[[list[float]], Estimate], statistic: Callable[[list[float]], float], count: int
) -> None:
    """Against the statistic of every resample with replacement: its 2.5% and 97.5% quantiles, within 0.6%.

    Control: the quantiles of a 90% interval are elsewhere.
    """
    found = estimate(VALUES[:count])
    exact = np.array([statistic(list(resample)) for resample in itertools.product(VALUES[:count], repeat=count)])
    low, high = (np.quantile(exact, [q - 0.006, q + 0.006], method="inverted_cdf") for q in (0.025, 0.975))
    assert found.low is not None and low[0] - 1e-9 <= found.low <= low[1] + 1e-9
    assert found.high is not None and high[0] - 1e-9 <= found.high <= high[1] + 1e-9
    if count == 5 and statistic is mean:
        assert np.quantile(exact, 0.05) > low[1] and np.quantile(exact, 0.95) < high[0]


def test_the_interval_agrees_with_scipy() -> None:
    """With other random numbers, and the same at each call."""
    values = np.random.default_rng(0).normal(size=12).tolist()
    theirs = stats.bootstrap(
        (values,), lambda x, axis: stats.trim_mean(x, 0.25, axis), method="percentile", rng=np.random.default_rng(9)
    ).confidence_interval
    found = interquartile_mean(values)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)
    assert found == interquartile_mean(values)


@pytest.mark.parametrize(
    ("count", "of_iqm", "of_mean"),
    [(3, (0.70, 0.80), (0.70, 0.80)), (5, (0.87, 0.95), (0.79, 0.89)), (10, (0.90, 0.98), (0.85, 0.94))],
)
def test_the_coverage_of_the_intervals(count: int, of_iqm: tuple[float, float], of_mean: tuple[float, float]) -> None:
    """How often a nominal 95% interval covers 0, the true value, for normal values: below 95% with few seeds."""
    rng, trials = np.random.default_rng(count), 400
    for estimate, (least, most) in ((interquartile_mean, of_iqm), (paired, of_mean)):
        found = [estimate(rng.normal(size=count).tolist()) for _ in range(trials)]
        covered = [each.low is not None and each.high is not None and each.low <= 0 <= each.high for each in found]
        assert least < np.mean(covered) < most
