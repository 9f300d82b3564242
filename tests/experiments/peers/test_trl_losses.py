"""TRL's own loss on an enumerated batch, beside the same loss by hand (`make trl`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("trl")

from agents.verification import verify
from agents.verification.cases import default_cases
from experiments.peers.toys import BETA, toy, without_score
from experiments.peers.trl_losses import LENGTH, grpo, grpo_on_samples_of_vllm, rloo
from tests.helpers.losses import small
from tests.helpers.peers import Batch, off_policy_batch
from textenv import exact

ROWS = [[0, 4], [1, 12], [7, 3]]  # of one to three tokens


def surrogate(batch: Batch, advantages: Tensor, beta: float = 0.0, reverse: bool = False) -> Tensor:
    """GRPO's loss of each token, [B, T], with k3 times the ratio."""
    log_ratio = batch.log_probs - batch.rollout.log_probs
    ratio, weights = log_ratio.exp(), advantages[:, None]
    clipped = torch.minimum(ratio * weights, ratio.clamp(0.8, 1.2) * weights)
    difference = batch.rollout.ref_log_probs - batch.log_probs
    difference = -difference if reverse else difference
    return (beta * ratio * (difference.exp() - 1 - difference) - clipped) * batch.rollout.mask


def centred(batch: Batch) -> Tensor:
    """Scores minus their mean."""
    return batch.rollout.scores - batch.rollout.scores.mean()


def scaled(batch: Batch) -> Tensor:
    """The same over their standard deviation, as TRL has it."""
    return centred(batch) / (batch.rollout.scores.std() + 1e-4)


def sequence(batch: Batch) -> Tensor:
    """RLOO's loss, with the KL in the reward and one ratio per completion."""
    rollout = batch.rollout
    rewards = rollout.scores - BETA * (rollout.log_probs - rollout.ref_log_probs).sum(dim=1)
    advantages = rewards - rewards.flip(0)
    ratio = ((batch.log_probs - rollout.log_probs) * rollout.mask).sum(dim=1).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()


def corrected(batch: Batch) -> Tensor:
    """GRPO's loss with ratio 1, each sequence weighted by pi over the sampler's, where that is at most 3."""
    weight = (batch.log_probs - batch.rollout.log_probs).sum(dim=1).exp().detach()
    weight = torch.where(weight <= 3.0, weight, 0.0)
    return -((weight * centred(batch))[:, None] * batch.rollout.mask).sum() / (2 * LENGTH)


PLAIN: dict[str, Any] = {"loss_type": "dr_grpo", "scale_rewards": "none"}
BY_HAND = {
    "dr_grpo, KL": (grpo, PLAIN | {"beta": BETA}, lambda b: surrogate(b, centred(b), BETA).sum() / (2 * LENGTH)),
    "dapo": (grpo, {}, lambda b: surrogate(b, scaled(b)).sum() / b.rollout.mask.sum()),
    "grpo": (
        grpo,
        {"loss_type": "grpo"},
        lambda b: (surrogate(b, scaled(b)).sum(dim=1) / b.rollout.mask.sum(dim=1)).mean(),
    ),
    "RLOO": (rloo, {"beta": BETA}, sequence),
    "vLLM": (grpo_on_samples_of_vllm, PLAIN, corrected),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_batch_has_the_loss_that_is_computed_by_hand(name: str) -> None:
    """Value and gradient, off policy; TRL keeps rewards in float32."""
    make, settings, by_hand = BY_HAND[name]
    loss = make(**settings)
    for rows in ROWS:
        batch = off_policy_batch(toy(), rows)
        found, expected = loss(batch.rollout, batch.log_probs), by_hand(batch)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
        if name != "vLLM":  # whose ratio of 1 has a gradient
            one, other = (torch.autograd.grad(each, batch.log_probs)[0] for each in (found, expected))
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_what_is_computed_by_hand_is_not_met_by_any_loss() -> None:
    """Negative control: the log-ratio of the KL reversed, another divisor, no KL."""
    batch = off_policy_batch(toy(), ROWS[1])
    found = grpo(beta=BETA, **PLAIN)(batch.rollout, batch.log_probs).item()
    losses = surrogate(batch, centred(batch), BETA)
    wrong = [
        surrogate(batch, centred(batch), BETA, reverse=True).sum() / (2 * LENGTH),
        losses.sum() / batch.rollout.mask.sum(),
        surrogate(batch, centred(batch)).sum() / (2 * LENGTH),
    ]
    assert all(abs(found - each.item()) > 1e-3 for each in wrong)


@pytest.mark.parametrize("corrected", [True, False])
def test_the_kl_in_the_loss_climbs_the_kl_of_each_state_with_the_states_held_fixed(corrected: bool) -> None:
    """Exactly, with k3 times the ratio; not with k3 alone (control)."""
    env = without_score(small(num_prompts=1))
    loss = grpo(beta=BETA, use_bias_correction_kl=corrected, **PLAIN)
    report = verify(loss, env, num_generations=2)
    for case in default_cases(exact.enumerate_tree(env)):
        known = case.evaluation
        log_ratio = known.log_probs - known.tree.ref_log_probs
        probs = np.exp(known.log_probs)
        kl = (probs * log_ratio).sum(axis=1, keepdims=True)
        by_logits = -BETA / LENGTH * known.occupancy[:, None] * probs * (log_ratio - kl)
        found = report.by_policy[case.name].expected.numpy()
        assert np.allclose(found, by_logits.flatten(), atol=1e-7) == corrected
