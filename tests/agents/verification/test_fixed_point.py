"""Where losses lead: to pi* where they are right, and else where plain gradient ascent leads too."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.sampling import Rollout
from agents.verification import verify
from agents.verification.batches import enumerate_batches
from agents.verification.cases import table_case
from agents.verification.loss import LossGradient
from agents.verification.measure import measure
from agents.verification.samples import sample_of
from tests.helpers.gradients import TASKS
from tests.helpers.losses import FAULTS, relative, small, to_go, weighted
from tests.helpers.tasks import make
from textenv import exact


@pytest.mark.parametrize(("loss", "num_generations"), [(to_go, 1), (relative, 2)])
def test_unbiased_losses_lead_to_the_optimum(loss: Any, num_generations: int) -> None:
    """All of the way."""
    report = verify(loss, small(num_prompts=1), num_generations=num_generations)
    assert report.fixed_point == pytest.approx(1.0, abs=1e-7)
    assert "fixed point: 100.0% of the way" in str(report)


def test_states_without_a_choice_are_no_loss_of_entropy() -> None:
    """Where the reference allows one token alone."""
    assert verify(to_go, make(TASKS["sparse"])).fixed_point == pytest.approx(1.0, abs=1e-7)


def test_it_is_where_gradient_ascent_leads() -> None:
    """For a wrong loss, that has a fixed point elsewhere: plain steps along its expected gradient end there too."""
    loss, env = FAULTS["rewards that come before"], small(num_prompts=1)
    found = verify(loss, env, num_generations=2).fixed_point
    tree = exact.enumerate_tree(env)
    log_probs = torch.as_tensor(tree.ref_log_probs)
    batches = enumerate_batches(table_case("", tree, tree.ref_log_probs).completions.prompt, 2)
    for _ in range(150):
        case = table_case("", tree, log_probs.numpy())
        sample = sample_of(case, case, num_generations=2)
        gradient = measure(LossGradient(loss), case, sample, case.pi, batches).expected
        log_probs = (log_probs + 4.0 * gradient.view(log_probs.shape)).log_softmax(dim=1)
    share = exact.solve(tree).normalized_objective(case.evaluation.objective)
    assert found == pytest.approx(share, abs=0.01) and 0.3 < found < 0.7  # control: the optimum is elsewhere


def test_a_loss_that_leads_nowhere_has_none() -> None:
    """Scores without a KL lead to a policy without entropy."""
    report = verify(score_alone, small(num_prompts=1), num_generations=2)
    assert math.isnan(report.fixed_point) and "none is reached from the reference" in str(report)


def score_alone(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """REINFORCE on the score."""
    return weighted(log_probs, rollout.scores[:, None], rollout.mask)
