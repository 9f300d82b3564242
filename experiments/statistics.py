"""Statistics over seeds, after Agarwal et al. 2021 (arXiv:2108.13264), with SciPy.

The intervals are percentile bootstraps with a nominal coverage of 95%. With few seeds they are too narrow: of values
from a normal distribution, the interval of the interquartile mean covers the true one in 75%, 91% and 94% of all cases
with 3, 5 and 10 seeds, that of a mean (of paired differences) in 75%, 84% and 90%.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, SupportsFloat

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A value with its bootstrap interval; None where there is only one seed."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return f"{self.value:.3f}" + ("" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]")


def interquartile_mean(values: Sequence[float]) -> Estimate:
    """Mean of the middle half (of all values, if fewer than four), and its 95% bootstrap interval over seeds."""
    return _bootstrap(np.asarray(values), _iqm)


def interquartile_mean_over_tasks(values: Sequence[Sequence[float]]) -> Estimate:
    """Mean of the middle half of all values, and its 95% bootstrap interval over the seeds of each task.

    It is stratified as by Agarwal et al.: seeds are resampled within their task. The tasks are given.

    Args:
        values: of each task, one a seed.
    """
    tasks = [np.asarray(task) for task in values]
    value = float(_iqm(np.concatenate(tasks)))
    if min(map(len, tasks)) < 2:
        return Estimate(value, None, None)
    result = stats.bootstrap(
        tasks,
        lambda *resampled, axis=-1: _iqm(np.concatenate(resampled, axis=axis), axis),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
        vectorized=True,
    )
    return Estimate(value, float(result.confidence_interval.low), float(result.confidence_interval.high))


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate:
    """Mean of first - second, seed by seed, and its 95% bootstrap interval.

    Args:
        first: a value for each seed.
        second: a value for each of the same seeds.

    Raises:
        ValueError: the two sides have different seeds.
    """
    if first.keys() != second.keys():
        raise ValueError(
            f"A paired difference needs the same seeds on both sides, got {sorted(first)} and {sorted(second)}."
        )
    return _bootstrap(np.array([first[seed] - second[seed] for seed in first]), np.mean)


def _iqm(values: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.asarray(stats.trim_mean(values, 0.25, axis=axis))


def _bootstrap(values: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], SupportsFloat]) -> Estimate:
    value = float(statistic(values))
    if len(values) < 2:
        return Estimate(value, None, None)
    result = stats.bootstrap(
        (values,), statistic, confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(0)
    )
    return Estimate(value, float(result.confidence_interval.low), float(result.confidence_interval.high))
