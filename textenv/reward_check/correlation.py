"""Correlations within prompts: what differs between prompts is no hole of a reward."""

from __future__ import annotations

import numpy as np

from textenv.reward_check.calls import Array

ALIKE = 0.98  # correlation of two features that are one
DETERMINED = 1e-6  # of a column's size is left by a fit that is exact: what is left is rounding


def spread_within(grid: Array) -> float:
    """The standard deviation within prompts of values [P, N]; 0 where those of each prompt are the same."""
    if (np.nanmax(grid, axis=1) == np.nanmin(grid, axis=1)).all():  # a variance would have rounding
        return 0.0
    return float(np.sqrt(np.nanmean(np.nanvar(grid, axis=1))))


def centred(grid: Array) -> Array:
    """Values minus the mean of their prompt, [P, N] -> [P N]; 0 for nan."""
    moved = np.nan_to_num(grid - np.nanmean(grid, axis=1, keepdims=True))
    constant = np.nanmax(grid, axis=1) == np.nanmin(grid, axis=1)  # whose mean may differ from them by rounding
    return np.where(constant[:, None], 0.0, moved).ravel()


def centred_ranks(grid: Array) -> Array:
    """Ranks among the completions of a prompt minus their mean, [P, N] -> [P N]; equal values share one; 0 for nan."""
    ranks = np.full(grid.shape, np.nan)
    for row, values in zip(ranks, grid, strict=True):
        known = ~np.isnan(values)
        _, inverse, counts = np.unique(values[known], return_inverse=True, return_counts=True)
        row[known] = (np.cumsum(counts) - (counts + 1) / 2)[inverse.ravel()]
    return centred(ranks)


def correlation(a: Array, b: Array) -> float:
    """The correlation of centred values, [K]; nan where one is constant."""
    a, b = (values / max(float(np.abs(values).max(initial=0.0)), 1e-300) for values in (a, b))  # no underflow
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 0 else float("nan")


def partial_correlations(target: Array, others: Array) -> Array:
    """The correlation of a target, [K], with each of F columns, [K, F], where the other columns are held, [F].

    It is the correlation of the residuals after both are fitted to the other columns; nan where the others determine
    the column or the target. Columns that are nearly the same as it are not held.
    """
    found = np.full(others.shape[1], np.nan)
    unit = others / np.maximum(np.linalg.norm(others, axis=0), 1e-12)
    alike = np.abs(unit.T @ unit) > ALIKE
    for k in range(len(found)):
        rest = others[:, ~alike[k]]
        both = np.stack([target, others[:, k]], axis=1)
        residual = both - rest @ np.linalg.lstsq(rest, both, rcond=None)[0]
        if (np.linalg.norm(residual, axis=0) > DETERMINED * np.linalg.norm(both, axis=0)).all():
            found[k] = correlation(residual[:, 0], residual[:, 1])
    return found
