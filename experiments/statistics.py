"""Statistics over seeds, after Agarwal et al. 2021 (arXiv:2108.13264), with SciPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
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
    return _bootstrap(np.asarray(values, dtype=np.float64), _iqm)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Mean of first - second, seed by seed, and its 95% bootstrap interval.

    Raises:
        ValueError: the two sides have different numbers of seeds.
    """
    if len(first) != len(second):
        raise ValueError(f"A paired difference needs the same seeds on both sides, got {len(first)} and {len(second)}.")
    return _bootstrap(np.asarray(first) - np.asarray(second), np.mean)


def _iqm(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.asarray(stats.trim_mean(values, 0.25, axis=axis))


def _bootstrap(values: np.ndarray, statistic: Callable[..., Any]) -> Estimate:
    value = float(statistic(values))
    if len(values) < 2:
        return Estimate(value, None, None)
    if np.ptp(values) == 0:  # SciPy warns of a degenerate distribution
        return Estimate(value, value, value)
    result = stats.bootstrap(
        (values,), statistic, confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(0)
    )
    return Estimate(value, float(result.confidence_interval.low), float(result.confidence_interval.high))
