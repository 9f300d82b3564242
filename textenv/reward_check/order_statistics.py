"""Means over all groups of n among N completions of a prompt, without drawing groups."""

from __future__ import annotations

from math import comb

import numpy as np

from textenv.reward_check.calls import Array


def best_of_n(grid: Array, n: int) -> float:
    """The mean over prompts and groups of n of the largest value of the group.

    The i-th smallest of N values is the largest of n of them with probability C(i - 1, n - 1) / C(N, n).

    Args:
        grid: [P, N], nan where there is no value. Of a prompt with fewer than n, all are one group.
        n: size of a group.
    """
    means = []
    for row in grid:
        values = np.sort(row[~np.isnan(row)])
        size = min(n, len(values))
        if size:
            ways = [comb(i, size - 1) / comb(len(values), size) for i in range(len(values))]
            means.append(float(values @ np.array(ways)))
    return float(np.mean(means))


def share_of_equal_groups(grid: Array, n: int) -> float:
    """The mean over prompts of the probability that n completions of the prompt have one score, of N given ones.

    A value that c of N have is that of all n with probability C(c, n) / C(N, n).
    """
    shares = []
    for row in grid:
        values = row[~np.isnan(row)]
        if len(values) >= n:
            counts = np.unique(values, return_counts=True)[1]
            shares.append(sum(comb(int(c), n) for c in counts) / comb(len(values), n))
    return float(np.mean(shares)) if shares else float("nan")
