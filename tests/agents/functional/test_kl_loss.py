"""The KL in the loss: the gradients of its estimates, in one state where all tokens can be enumerated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agents.functional import KL_LOSSES, exact_kl, k2, k3, sampled_kl, with_later_states
from tests.helpers.batches import Batch, batches, close, padded, properties

seeds = st.integers(0, 9999)


def logits_of(seed: int) -> tuple[Tensor, Tensor]:
    """Logits of a policy, with gradient, and log-probabilities of a reference, over five tokens."""
    policy, reference = torch.as_tensor(np.random.default_rng(seed).normal(size=(2, 5)))
    return policy.requires_grad_(), reference.log_softmax(dim=0)


def expected_gradient(name: Any, seed: int) -> Tensor:
    """E[gradient of the term] over the policy's own tokens, by its logits."""
    logits, reference = logits_of(seed)
    log_probs, mask = logits.log_softmax(dim=0)[None], torch.ones(1, 5, dtype=torch.bool)
    kl = sampled_kl(name, log_probs, reference[None], log_probs.detach(), mask)
    (gradient,) = torch.autograd.grad((log_probs.detach().exp() * kl).sum(), logits)
    return gradient


def divergence(seed: int, forward: bool) -> Tensor:
    """The gradient of KL(pi || pi_ref), or of KL(pi_ref || pi), by the logits."""
    logits, reference = logits_of(seed)
    log_probs = logits.log_softmax(dim=0)
    kl = (reference.exp() * (reference - log_probs)) if forward else (log_probs.exp() * (log_probs - reference))
    return torch.autograd.grad(kl.sum(), logits)[0]


@properties
@given(seeds)
def test_the_expected_gradients_are_those_of_the_table(seed: int) -> None:
    """k1 has none; k2, and k3 times rho, that of KL(pi || pi_ref); k3 that of KL(pi_ref || pi), which is another."""
    reverse, forward = divergence(seed, forward=False), divergence(seed, forward=True)
    assert expected_gradient("k1", seed).abs().max() < 1e-12
    assert close(expected_gradient("k2", seed), reverse)
    assert close(expected_gradient("k3_rho", seed), reverse)
    assert close(expected_gradient("k3", seed), forward)
    assert not close(forward, reverse)


@properties
@given(batches())
def test_k3_times_rho_has_the_gradient_of_k2_sample_by_sample(batch: Batch) -> None:
    """On policy, token by token. Control: k3 alone has another."""

    def gradient(name: Any) -> Tensor:
        log_probs = batch["log_probs"].clone().requires_grad_()
        kl = sampled_kl(name, log_probs, batch["old_log_probs"], batch["log_probs"], batch["mask"])
        return torch.autograd.grad(kl.sum(), log_probs)[0]

    assert close(gradient("k3_rho"), gradient("k2"))
    assert not close(gradient("k3"), gradient("k2"))


def test_the_terms_are_their_equations() -> None:
    """l = 0.5 and rho = e^0.2 in the first token; the second is padding."""
    log_probs, mask = torch.tensor([[-0.5, 7.0]]), torch.tensor([[True, False]])
    reference, old = torch.tensor([[-1.0, 0.0]]), torch.tensor([[-0.7, 0.0]])
    k_2, k_3 = k2(torch.tensor(0.5)), k3(torch.tensor(0.5))
    expected = {"k1": 0.5, "k2": float(k_2), "k3": float(k_3), "k3_rho": float(np.exp(0.2) * k_3)}
    assert expected.keys() == KL_LOSSES.keys()
    for name, term in expected.items():
        assert sampled_kl(name, log_probs, reference, old, mask).tolist() == [[pytest.approx(term), 0.0]]  # type: ignore[arg-type]


@properties
@given(batches(), st.integers(1, 3))
def test_padding_changes_nothing(batch: Batch, columns: int) -> None:
    """Garbage where the mask is False, whose exponential may be infinite."""
    longer = padded(batch, columns, seed=4)
    longer["old_log_probs"] = torch.where(longer["mask"], longer["old_log_probs"], -2000.0)
    for name in KL_LOSSES:
        short, long = (
            sampled_kl(name, b["log_probs"], b["old_log_probs"], b["log_probs"], b["mask"]) for b in (batch, longer)
        )
        assert close(short, long[:, :-columns]) and not long[:, -columns:].any()


# -- exact -------------------------------------------------------------------------------------------------------------


@properties
@given(seeds)
def test_the_exact_kl_is_the_divergence(seed: int) -> None:
    """Value and gradient, also where the reference masks a token."""
    mask = torch.tensor([[True, False]])
    for masked in (False, True):
        logits, reference = logits_of(seed)
        allowed = torch.tensor([not masked, True, True, True, True])
        log_probs = logits.masked_fill(~allowed, -torch.inf).log_softmax(dim=0)
        reference = reference.masked_fill(~allowed, -torch.inf).log_softmax(dim=0)
        kl = exact_kl(*(x.expand(1, 2, 5) for x in (log_probs, reference)), mask)
        expected = torch.nn.functional.kl_div(reference[allowed], log_probs[allowed], reduction="sum", log_target=True)
        assert close(kl, torch.stack([expected, torch.zeros_like(expected)])[None])
        ours, theirs = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (kl.sum(), expected))
        assert close(ours, theirs) and bool(ours.isfinite().all())


def test_later_states_weigh_the_tokens_before_them() -> None:
    """The first token by the KL of the second and third state, the last one by nothing; padding counts for nothing."""
    log_probs = torch.zeros(1, 4, requires_grad=True)
    kl = torch.tensor([[1.0, 2.0, 4.0, 100.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True, False]])
    of_kl, of_log_probs = torch.autograd.grad(with_later_states(kl, log_probs, mask).sum(), [kl, log_probs])
    assert of_kl.tolist() == [[1.0, 1.0, 1.0, 0.0]] and of_log_probs.tolist() == [[6.0, 4.0, 0.0, 0.0]]


def test_other_shapes_are_refused() -> None:
    """[B] would broadcast where B = T."""
    x, mask = torch.zeros(3, 3), torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="ref_log_probs must have the shape"):
        sampled_kl("k2", x, x[0], x, mask)
    with pytest.raises(ValueError, match="ref_all_log_probs must have the shape"):
        exact_kl(x[..., None], x[:2, :, None], mask)
    with pytest.raises(ValueError, match="log_probs must have the shape"):
        with_later_states(x, x[0], mask)
