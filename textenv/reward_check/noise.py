"""Scores that differ: by more than the same batch differs when it is scored again?

No distribution of the noise is assumed. If what was changed (the order, the batch, the process) does not matter, the n
differences that it makes are exchangeable with the K differences of a repetition: above any threshold the number of
the n, given that of both, has a hypergeometric distribution.
"""

from __future__ import annotations

from math import comb

import numpy as np

from textenv.reward_check.calls import Array

CHANCE = 1e-5  # at each threshold: the probability of so many larger differences where nothing but noise differs


def differences(found: Array, expected: Array) -> Array:
    """The absolute difference of two scores of each completion; inf where one of the two is None, 0 where both are."""
    sizes = np.abs(found - expected)
    return np.where(np.isnan(sizes), np.where(np.isnan(found) == np.isnan(expected), 0.0, np.inf), sizes)


def standard_deviation(found: Array, expected: Array) -> float:
    """Of a score's noise, from two scores of each completion; over the completions with both, 0 if there is none."""
    change = (found - expected)[~np.isnan(found) & ~np.isnan(expected)]
    return float(np.sqrt((change**2).mean() / 2)) if len(change) else 0.0  # a difference has twice the variance


def beyond_noise(sizes: Array, repeated: Array, tolerance: float) -> bool:
    """Whether differences exceed those of a repetition.

    Args:
        sizes: the differences, [n].
        repeated: those of the repetition, [K].
        tolerance: a smaller difference is rounding.
    """
    noise = repeated[repeated > tolerance]
    if not len(noise):
        return bool((sizes > tolerance).any())
    finite = noise[np.isfinite(noise)]
    thresholds = [tolerance, *([float(np.median(finite)), float(finite.max())] if len(finite) else [])]
    counts = [((sizes > least).sum(), (repeated > least).sum()) for least in thresholds]
    return any(_chance(int(new), len(sizes), int(old), len(repeated)) < CHANCE for new, old in counts)


def _chance(new: int, n: int, old: int, count: int) -> float:
    """The probability that at least `new` of `new + old` marked ones are among n that are drawn of n + count."""
    marked, total = new + old, n + count
    ways = sum(comb(marked, k) * comb(total - marked, n - k) for k in range(new, min(n, marked) + 1))
    return ways / comb(total, n)
