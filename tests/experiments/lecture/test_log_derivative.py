"""Claim 1: the log-derivative trick and Monte Carlo."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from agents.functional import leave_one_out, reward_to_go
from agents.sampling import new_generator
from agents.verification import Enumeration
from experiments.lecture import credit_variance, log_derivative
from experiments.lecture.credit_variance import Rung
from experiments.lecture.gram import parameter_gram, tabular_gram
from experiments.lecture.log_derivative import gradient_std
from tests.helpers.lecture import SEEDS, all_completions, rungs_of, toy
from tests.helpers.policies import random_policy
from textenv import exact


@settings(max_examples=5, deadline=None)
@given(seed=SEEDS)
def test_the_variance_falls_as_one_over_n(seed: int) -> None:
    """The variance of n completions, all batches enumerated, is that of one over n; the mean is unbiased at every n."""
    completions = all_completions(seed, max_new_tokens=2)
    gram = tabular_gram(completions)
    whole = reward_to_go(completions.rewards, completions.mask)[:, :1].expand_as(completions.rewards)
    for n in (1, 2, 3):
        rung = Rung(whole[credit_variance.batches(completions, n)[0]])
        found = credit_variance.bias_and_variance(completions, rung, gram)  # `variance` is n times that of the batch
        assert found["variance"] / n == pytest.approx(gradient_std(completions, gram, n, "sequence", None) ** 2)
        assert found["bias"] < 1e-6


@settings(max_examples=5, deadline=None)
@given(seed=SEEDS)
def test_the_prediction_includes_the_dependence_of_leave_one_out(seed: int) -> None:
    """Leave-one-out's predicted variance is that of all enumerated batches; that of the constant V(s_0) is smaller."""
    completions = all_completions(seed, max_new_tokens=2)
    gram = tabular_gram(completions)
    to_go = reward_to_go(completions.rewards, completions.mask)
    for n in (2, 3):
        rows = credit_variance.batches(completions, n)[0]
        others = leave_one_out(to_go[:, 0][rows].flatten(), n).view(-1, n, 1)
        found = credit_variance.bias_and_variance(completions, Rung(to_go[rows] - others), gram)["variance"] / n
        assert found == pytest.approx(gradient_std(completions, gram, n, "reward_to_go", "leave_one_out") ** 2)
    constant = rungs_of(completions)["reward to go - V(s_0)"]["variance"] / 2
    assert constant < 0.999 * gradient_std(completions, gram, 2, "reward_to_go", "leave_one_out") ** 2


def test_the_prediction_averages_over_prompts() -> None:
    """With two prompts and one completion of each, g is the mean of two independent gradients."""
    completions = all_completions(3, num_prompts=2)
    gram = tabular_gram(completions)
    whole = reward_to_go(completions.rewards, completions.mask)[:, 0]
    total = 0.0
    for prompt in (0, 1):
        rows = torch.nonzero(completions.prompt == prompt).flatten()
        probability = 2 * completions.probability[rows]
        gradients = torch.zeros(len(rows), len(gram), dtype=torch.float64)
        for i, row in enumerate(rows):
            for t in torch.nonzero(completions.mask[row]).flatten():
                gradients[i, completions.edges[row, t]] += whole[row]
        mean = probability @ gradients
        total += float(sum(p * (g - mean) @ gram @ (g - mean) for p, g in zip(probability, gradients, strict=True)))
    assert gradient_std(completions, gram, 1, "sequence", None) == pytest.approx((total / 4) ** 0.5)


def test_the_sampled_gradient_estimates_that_of_the_exact_objective() -> None:
    """REINFORCE on 2,000 completions per prompt is within four predicted standard errors; its negative is not."""
    env = toy(num_prompts=2)
    policy = random_policy(env).float()
    completions = Enumeration.of(exact.evaluate(env, policy))
    true = log_derivative.flat(g for name, g in exact.policy_gradient(env, policy).items() if "model." in name)
    gram = parameter_gram(policy, completions.tree)
    for options in log_derivative.ESTIMATORS.values():
        found = log_derivative.sampled_gradient(env, policy, 2000, new_generator("cpu", 0), options)
        allowed = 4 * gradient_std(completions, gram, 2000, **options)
        assert float((found - true).norm()) < allowed < float((found + true).norm())


def test_each_row_has_the_error_of_its_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampled errors are near the prediction for the estimator that the row names."""
    monkeypatch.setattr(log_derivative, "SAMPLES", (1, 16, 64))
    monkeypatch.setattr(log_derivative, "REPEATS", 32)
    monkeypatch.setattr(log_derivative, "partly_trained_policy", lambda env: random_policy(env, scale=0.1).float())
    numbers = log_derivative.measure()
    for rows in numbers.values():
        for row in rows:
            assert row["repeats"] >= 32 and 0.7 < row["error"] / row["predicted"] < 1.4
    whole, others = numbers["whole return"], numbers["reward to go, leave-one-out"]
    assert [row["n"] for row in whole] == [1, 16, 64] and [row["n"] for row in others] == [16, 64]
    assert whole[0]["predicted"] == pytest.approx(4 * whole[1]["predicted"])  # 1 / sqrt(n)
    assert whole[1]["predicted"] != pytest.approx(others[0]["predicted"], rel=0.02)
