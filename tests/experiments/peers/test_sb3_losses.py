"""Stable-Baselines3's PPO on an enumerated batch, beside the same loss by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agents.functional import reward_to_go
from experiments.peers.sb3_losses import SB3PPO
from experiments.peers.toys import equal_lengths, toy
from tests.helpers.peers import Batch, off_policy_batch

ROWS = [[0, 4], [1, 12], [7, 3]]  # of one to three tokens


def by_hand(batch: Batch, advantages: Tensor, normalized: bool) -> Tensor:
    """The mean over tokens of the clipped loss, and half the mean squared error of V."""
    mask = batch.rollout.mask
    ratio = (batch.log_probs - batch.rollout.log_probs)[mask].exp()
    kept = advantages[mask]
    error = kept.square().mean()
    if normalized:
        kept = (kept - kept.mean()) / (kept.std() + 1e-8)
    return -torch.minimum(ratio * kept, ratio.clamp(0.8, 1.2) * kept).mean() + 0.5 * error


def of_step(batch: Batch) -> Tensor:
    """G_t - V(s_t), [B, T]."""
    return reward_to_go(batch.rollout.rewards, batch.rollout.mask) - batch.values


@pytest.mark.parametrize("normalized", [True, False])
def test_a_batch_has_the_loss_that_is_computed_by_hand(normalized: bool) -> None:
    """Value and gradient, off policy; the buffer is in float32."""
    loss = SB3PPO(gae_lambda=1.0, normalize_advantage=normalized)
    for rows, env in [*((rows, toy()) for rows in ROWS), ([2, 5], equal_lengths())]:
        batch = off_policy_batch(env, rows)
        found = loss(batch.rollout, batch.log_probs, batch.values)
        expected = by_hand(batch, of_step(batch), normalized)
        assert found.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)
        one, other = (torch.autograd.grad(each, batch.log_probs)[0] for each in (found, expected))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_is_computed_by_hand_is_not_met_by_any_loss() -> None:
    """Negative control: rewards that come before, and advantages that are not normalized."""
    batch = off_policy_batch(toy(), ROWS[1])
    found = SB3PPO(gae_lambda=1.0)(batch.rollout, batch.log_probs, batch.values).item()
    late = batch.rollout.rewards.cumsum(dim=1) - batch.values
    assert abs(found - by_hand(batch, late, True).item()) > 1e-2
    assert abs(found - by_hand(batch, of_step(batch), False).item()) > 1e-2
