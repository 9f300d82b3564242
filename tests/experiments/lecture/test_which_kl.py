"""Claim 8: estimators of the KL, and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from agents.functional import k1, k2, k3
from agents.verification import Enumeration, random_log_probs
from experiments.lecture import which_kl
from tests.helpers.lecture import SEEDS, all_completions, toy
from textenv import exact


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("distance", [0.1, None])
def test_only_k1_in_the_reward_has_the_gradient_of_the_kl(seed: int, distance: float | None) -> None:
    """k1 is exact in the reward and has no gradient in the loss; k2 and k3 have other gradients.

    Near pi_ref, those of k2 and k3 are worse in the reward than in the loss.
    """
    completions = all_completions(seed, distance, max_new_tokens=4)
    true = which_kl.kl_gradient(completions)
    torch.testing.assert_close(which_kl.in_reward(completions, k1), true, rtol=1e-9, atol=1e-12)
    assert which_kl.cosine(which_kl.in_loss(completions, k1), true) is None
    for estimator in (k2, k3):
        cosines = [which_kl.cosine(g(completions, estimator), true) for g in (which_kl.in_reward, which_kl.in_loss)]
        assert max(cosines) < 1 - 1e-6
        if distance is not None:
            assert cosines[0] < cosines[1]


def test_the_gradient_of_the_kl_is_that_of_the_exact_objective() -> None:
    """`kl_gradient` is the exact gradient of -J with no score and beta = 1."""
    tree = exact.enumerate_tree(toy(2, kl_coef=1.0))
    tree.scores[:] = 0
    evaluation = exact.evaluate_log_probs(tree, random_log_probs(tree, np.random.default_rng(2)))
    weights = (
        evaluation.occupancy[:, None] * np.exp(evaluation.log_probs) * evaluation.advantages
    )  # by logits: sum_b pi(b|s) A(s, b) = 0
    torch.testing.assert_close(which_kl.kl_gradient(Enumeration.of(evaluation)), torch.as_tensor(-weights.ravel()))


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_what_the_estimators_estimate(seed: int) -> None:
    """k1 and k3 average to the KL, k2 does not; near the reference k3 has far less variance than k1."""
    completions = all_completions(seed, distance=0.1)
    ratios = which_kl.log_ratios(completions)
    totals = {k: torch.where(completions.mask, k(ratios), 0.0).sum(dim=1) for k in (k1, k2, k3)}
    means = {k: float(completions.probability @ total) for k, total in totals.items()}
    spread = {k: float(completions.probability @ (totals[k] - means[k]) ** 2) for k in totals}
    kl = completions.evaluation.kl
    assert means[k1] == pytest.approx(kl) == pytest.approx(means[k3])
    assert abs(means[k2] - kl) > 1e-4 * kl
    assert spread[k3] < spread[k1] / 4


def test_the_numbers_of_the_claim_match_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of the claim: cosines of each estimator; bias and std of each, in units of the KL."""
    monkeypatch.setattr(which_kl, "POLICIES", 2)
    found = which_kl.over_policies(None)
    assert found["k1"]["in the reward"] == pytest.approx([1.0, 1.0]) and found["k1"]["in the loss"] == [None, None]
    for name in ("k2", "k3"):
        assert max(found[name]["in the reward"] + found[name]["in the loss"]) < 1 - 1e-3
    assert found["k1"]["bias"] == pytest.approx([0, 0], abs=1e-9) == found["k3"]["bias"]
    completions = Enumeration.of(first_independent_policy())
    ratios = which_kl.log_ratios(completions)
    for name, k in (("k1", k1), ("k2", k2), ("k3", k3)):
        total = torch.where(completions.mask, k(ratios), 0.0).sum(dim=1)
        mean = completions.probability @ total
        kl = completions.evaluation.kl
        assert found[name]["bias"][0] == pytest.approx(float(mean) / kl - 1, abs=1e-9)
        assert found[name]["std"][0] == pytest.approx(float((completions.probability @ total**2 - mean**2).sqrt()) / kl)
    assert found["kl"][0] == pytest.approx(completions.evaluation.kl)


def first_independent_policy() -> exact.Evaluation:
    """The first independent policy of the claim."""
    tree = exact.enumerate_tree(toy(0, vocab_size=4, max_new_tokens=5, kl_coef=0.1))
    return exact.evaluate_log_probs(tree, random_log_probs(tree, np.random.default_rng(0)))
