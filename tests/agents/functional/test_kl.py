"""KL estimators and the controller of beta against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agents.functional import adaptive_kl_coef, k1, k2, k3
from tests.helpers.batches import close, properties

# -- estimators ------------------------------------------------------------------------------------------------------


def categorical(seed: int) -> tuple[Tensor, Tensor]:
    """Two distributions over five outcomes, as log-probabilities."""
    logits = torch.as_tensor(np.random.default_rng(seed).normal(size=(2, 5)))
    policy, reference = logits.log_softmax(dim=1)
    return policy, reference


@properties
@given(st.integers(0, 9999))
def test_k1_and_k3_are_unbiased_and_k2_is_not(seed: int) -> None:
    """The expectation over all outcomes is the KL for k1 and k3, but not for k2."""
    policy, reference = categorical(seed)
    log_ratio = policy - reference
    kl = float((policy.exp() * log_ratio).sum())
    expectation = {k.__name__: float((policy.exp() * k(log_ratio)).sum()) for k in (k1, k2, k3)}
    assert expectation["k1"] == pytest.approx(kl, abs=1e-12)
    assert expectation["k3"] == pytest.approx(kl, abs=1e-12)
    assert abs(expectation["k2"] - kl) > 1e-9


@properties
@given(st.integers(0, 9999))
def test_k2_and_k3_are_never_negative(seed: int) -> None:
    """k2 and k3 are >= 0 at every outcome; k1 is negative at some (the control)."""
    policy, reference = categorical(seed)
    log_ratio = policy - reference
    assert (k2(log_ratio) >= 0).all() and (k3(log_ratio) >= 0).all()
    assert (k1(log_ratio) < 0).any()


def test_k3_with_the_inverse_ratio_is_biased() -> None:
    """Control: with exp(+log_ratio) the expectation of k3 is not the KL."""
    policy, reference = categorical(0)
    log_ratio = policy - reference
    wrong = float((policy.exp() * (log_ratio.exp() - 1 + log_ratio)).sum())
    assert wrong != pytest.approx(float((policy.exp() * log_ratio).sum()), abs=1e-3)


def test_the_gradients_of_the_estimators() -> None:
    """On one step, by enumeration: k1 in the reward and k2 as a loss have the KL's gradient; k1 as a loss has none."""
    logits = torch.as_tensor(np.random.default_rng(1).normal(size=5)).requires_grad_()
    _, reference = categorical(2)
    policy = logits.log_softmax(dim=0)
    log_ratio = policy - reference
    probs = policy.detach().exp()
    losses = {
        "kl": (policy.exp() * log_ratio).sum(),
        "k1 in the reward": (probs * policy * k1(log_ratio).detach()).sum(),
        "k2 as a loss": (probs * k2(log_ratio)).sum(),
        "k1 as a loss": (probs * k1(log_ratio)).sum(),
        "k3 as a loss": (probs * k3(log_ratio)).sum(),
    }
    gradient = {name: torch.autograd.grad(loss, logits, retain_graph=True)[0] for name, loss in losses.items()}
    assert close(gradient["k1 in the reward"], gradient["kl"]) and close(gradient["k2 as a loss"], gradient["kl"])
    assert gradient["k1 as a loss"].abs().max() < 1e-12
    assert not torch.allclose(gradient["k3 as a loss"], gradient["kl"], atol=1e-2)


# -- the controller of beta ------------------------------------------------------------------------------------------


COEFFICIENTS = st.floats(1e-3, 10.0)
TARGETS = st.floats(1e-2, 50.0)


@pytest.mark.parametrize(
    ("kl_coef", "kl", "target", "num_episodes", "expected"),
    [
        # e = clip((KL - target) / target, -0.2, 0.2), beta (1 + K e): Ziegler et al. 2019, with K = episodes / horizon
        (0.1, 6.6, 6.0, 512, 0.100512),  # e = 0.1, K = 0.0512
        (0.1, 5.7, 6.0, 512, 0.099744),  # e = -0.05
        (0.1, 12.0, 6.0, 512, 0.101024),  # e = 1, clipped to 0.2
        (0.1, 3.0, 6.0, 512, 0.098976),  # e = -0.5, clipped to -0.2
        (0.1, -1.0, 6.0, 512, 0.098976),  # an estimate may be negative
        (0.5, 11.0, 10.0, 1000, 0.505),  # K = 0.1, the paper's
        (2.0, 10.0, 10.0, 1000, 2.0),
    ],
)
def test_adaptive_kl_coef_by_hand(kl_coef: float, kl: float, target: float, num_episodes: int, expected: float) -> None:
    """One step of the controller of Ziegler et al. 2019, computed by hand."""
    for horizon in ((10_000,), ()):  # it is the default
        assert adaptive_kl_coef(kl_coef, kl, target, num_episodes, *horizon) == pytest.approx(expected, rel=1e-12)


def test_adaptive_kl_coef_can_always_rise_again() -> None:
    """After thousands of batches below the target, too. Control: it has fallen."""
    kl_coef = 0.1
    for _ in range(5000):
        kl_coef = adaptive_kl_coef(kl_coef, 0.0, 1.0, 100, 100)
    assert 0 < kl_coef < 1e-20
    assert adaptive_kl_coef(kl_coef, 9.0, 1.0, 100, 100) == pytest.approx(1.2 * kl_coef, rel=1e-12)


@properties
@given(COEFFICIENTS, st.floats(0.0, 100.0), TARGETS, st.integers(1, 2000), st.integers(2000, 20_000))
def test_adaptive_kl_coef_steers_the_kl_towards_its_target(
    kl_coef: float, kl: float, target: float, num_episodes: int, horizon: int
) -> None:
    """beta rises where the KL is above its target, falls below, stays at it; it changes by at most the factor 0.2 K."""
    after = adaptive_kl_coef(kl_coef, kl, target, num_episodes, horizon)
    largest = 0.2 * num_episodes / horizon
    assert abs(after / kl_coef - 1) <= largest + 1e-12 and after > 0
    assert adaptive_kl_coef(kl_coef, target, target, num_episodes, horizon) == kl_coef
    assert (after - kl_coef) * (kl - target) >= 0
    if abs(kl / target - 1) > 1e-9:
        assert after != kl_coef
    if abs(kl / target - 1) > 0.2:  # beyond the clip the distance makes no difference
        assert abs(after / kl_coef - 1) == pytest.approx(largest)
        assert adaptive_kl_coef(kl_coef, 2 * kl - target, target, num_episodes, horizon) == after
    elif abs(kl / target - 1) > 1e-6:  # within the clip it does
        nearer = adaptive_kl_coef(kl_coef, (kl + target) / 2, target, num_episodes, horizon)
        assert nearer / kl_coef - 1 == pytest.approx((after / kl_coef - 1) / 2, rel=1e-3)


@pytest.mark.parametrize(("kl", "factor"), [(100.0, np.exp(0.2)), (0.0, np.exp(-0.2)), (5.0, 1.0)])
@pytest.mark.parametrize("batch", [1, 8])
def test_over_a_horizon_beta_changes_by_a_factor(kl: float, factor: float, batch: int) -> None:
    """A KL that stays off target changes beta by e^(+-0.2) in `horizon` completions, in batches of any size."""
    kl_coef = 0.3
    for _ in range(4000 // batch):
        kl_coef = adaptive_kl_coef(kl_coef, kl, 5.0, batch, 4000)
    assert kl_coef / 0.3 == pytest.approx(factor, rel=1e-4)
    assert kl_coef / 0.3 != pytest.approx(factor * 1.01, rel=1e-4)
