"""Claim 9: gamma and lambda."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from experiments.lecture import gamma_lambda
from tests.helpers.lecture import SEEDS, all_completions
from tests.helpers.policies import random_policy


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_lambda_trades_bias_for_variance(seed: int) -> None:
    """gamma = lambda = 1 is unbiased for every V; with a wrong V lambda = 0 is biased and has no variance."""
    completions = all_completions(seed)
    wrong = completions.look_up(np.random.default_rng(seed).normal(size=len(completions.tree.prompt)))
    at_zero, at_one = (gamma_lambda.errors(completions, wrong, 1.0, lam) for lam in (0.0, 1.0))
    assert at_one["bias"] < 1e-9 < 1e-3 < at_zero["bias"]
    assert at_zero["std"] < 1e-9 < 1e-3 < at_one["std"]
    assert gamma_lambda.errors(completions, wrong, 0.8, 1.0)["bias"] > 1e-3  # discounts the score


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_with_the_exact_v_lambda_only_adds_variance(seed: int) -> None:
    """With the exact V no lambda is biased, and the variance rises with lambda from zero."""
    completions = all_completions(seed)
    values = completions.look_up(completions.evaluation.values)
    rows = [gamma_lambda.errors(completions, values, 1.0, lam) for lam in gamma_lambda.LAMBDAS]
    deviations = [row["std"] for row in rows]
    assert max(row["bias"] for row in rows) < 1e-9
    assert deviations == sorted(deviations) and deviations[0] < 1e-9 < deviations[-1]


def test_the_grid_uses_a_learned_v(monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim's grid: no bias at gamma = lambda = 1, and a bias at lambda = 0, which the exact V would not have."""
    monkeypatch.setattr(gamma_lambda, "CRITIC_STEPS", 3)
    monkeypatch.setattr(gamma_lambda, "partly_trained_policy", lambda env: random_policy(env).float())
    grid = {(row["gamma"], row["gae_lambda"]): row for row in gamma_lambda.measure()["grid"]}
    assert grid[1.0, 1.0]["bias"] < 1e-6 < 1e-3 < grid[1.0, 0.0]["bias"]
    assert grid[1.0, 0.0]["std"] < 1e-6 < 1e-3 < grid[1.0, 1.0]["std"]
    assert grid[0.8, 1.0]["bias"] > 1e-3
