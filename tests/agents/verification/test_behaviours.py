"""Other samplers: the expectations are those of brute force, and corrections mend what they can."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.sampling import Rollout
from agents.verification import verify
from agents.verification.behaviours import SAMPLERS, top_k, top_p
from agents.verification.cases import default_cases
from agents.verification.samples import sample_of
from tests.helpers.losses import small, weighted
from textenv import exact


def corrected(rollout: Rollout, log_probs: Tensor, values: Tensor) -> Tensor:
    """The whole sequence's weight on the score, and on the KL of the policy itself: unbiased from any sampler."""
    log_ratio = torch.where(rollout.mask, log_probs - rollout.log_probs, 0.0).sum(dim=1)
    kl = torch.where(rollout.mask, log_probs.detach() - rollout.ref_log_probs, 0.0).sum(dim=1)
    return -(log_ratio.exp() * (rollout.scores - 0.2 * kl)).sum() / len(log_probs)


def uncorrected(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """REINFORCE on whole returns, as if the completions were the policy's."""
    return weighted(log_probs, rollout.rewards.sum(dim=1)[:, None], rollout.mask)


def test_a_correction_of_the_whole_sequence_is_unbiased() -> None:
    """Where the sampler can sample all completions: not top-k; rounded log-probs leave their rounding. Control: none
    is unbiased without it."""
    right, wrong = verify(corrected, small()).off_policy, verify(uncorrected, small()).off_policy
    assert list(right) == list(SAMPLERS)
    for name in ("an older policy", "temperature 1.5"):
        assert right[name].unbiased and not wrong[name].unbiased and wrong[name].bias > 0.01
    assert not right["top-k"].unbiased and not wrong["top-k"].unbiased
    assert 1e-6 < right["bfloat16"].bias < 0.01


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_numbers_are_those_of_brute_force(name: str) -> None:
    """One completion per batch: sum over all of them of what the sampler's probability is."""
    env = small()
    tree, report = exact.enumerate_tree(env), verify(uncorrected, env).off_policy[name]
    for case in default_cases(tree):
        behaviour, returned = SAMPLERS[name].behaviour(case)
        rollout, completions = sample_of(case, behaviour, returned).rollout, case.completions
        logits = case.log_probs.clone().requires_grad_()
        log_pi = torch.where(
            completions.mask, logits.log_softmax(dim=1)[completions.states, completions.actions], 0.0
        ).sum(dim=1)
        pi = np.exp(tree.completion_log_probs(behaviour.log_probs.numpy())) / 2
        returned_log_probs = completions.look_up(returned)
        gains = rollout.scores - 0.2 * (returned_log_probs - rollout.ref_log_probs).sum(dim=1)
        weights = torch.where(torch.as_tensor(pi) > 0, torch.as_tensor(pi) * gains, 0.0)
        (expected,) = torch.autograd.grad((weights * log_pi).sum(), logits)
        assert torch.allclose(report.by_policy[case.name].expected, expected.flatten(), atol=1e-12)


@pytest.mark.parametrize(("restrict", "kept"), [(lambda x, t: top_k(x, t, 2), 2), (lambda x, t: top_p(x, t, 0.7), 2)])
def test_restricted_samplers_sample_the_most_likely(restrict: Any, kept: int) -> None:
    """Normalised, in the proportions of pi. Control: of the token that is left out pi is not small."""
    tree = exact.enumerate_tree(small())
    log_probs = np.log(np.array([[0.5, 0.3, 0.2]] * len(tree.prompt)))
    found = np.exp(restrict(log_probs, tree))
    assert np.allclose(found, [0.5 / 0.8, 0.3 / 0.8, 0.0]) and (found > 0).sum() == kept * len(found)


def test_without_a_kl_the_optimum_has_no_entropy() -> None:
    """Others sample what it never does: nothing is measured there, and all else is."""
    report = verify(uncorrected, small(kl_coef=0.0, num_prompts=1))
    assert report.unbiased and not report.zero_at_optimum and "not tested, since pi* has no entropy" in str(report)
    assert all(each.at_optimum is None and each.zero == "-" for each in report.off_policy.values())
    assert "fixed point" in str(report)
