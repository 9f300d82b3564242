"""Correlations within prompts: what differs between prompts is no hole of a reward."""

from __future__ import annotations

import numpy as np

from textenv.reward_check.calls import Array

ALIKE = 0.98  # correlation of two features that are one


def centred(grid: Array) -> Array:
    """Values minus the mean of their prompt, [P, N] -> [P N]; 0 for nan."""
    moved: Array = np.nan_to_num(grid - np.nanmean(grid, axis=1, keepdims=True))
    return moved.ravel()


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
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 1e-12 else float("nan")


def partial_correlations(target: Array, others: Array) -> Array:
    """The correlation of a target, [K], with each of F columns, [K, F], where the other columns are held, [F].

    It is the correlation of the residuals after both are fitted to the other columns; nan for a column that the others
    determine. Columns that are nearly the same as it are not held.
    """
    found = np.full(others.shape[1], np.nan)
    unit = others / np.maximum(np.linalg.norm(others, axis=0), 1e-12)
    alike = np.abs(unit.T @ unit) > ALIKE
    for k in range(len(found)):
        rest = others[:, ~alike[k]]
        both = np.stack([target, others[:, k]], axis=1)
        residual = both - rest @ np.linalg.lstsq(rest, both, rcond=None)[0]
        if np.linalg.norm(residual[:, 1]) > 1e-6 * np.linalg.norm(others[:, k]):
            found[k] = correlation(residual[:, 0], residual[:, 1])
    return found
