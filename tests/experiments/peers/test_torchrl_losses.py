"""TorchRL's own losses on an enumerated batch, beside the same losses by hand (`make torchrl`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

pytest.importorskip("torchrl")

from torchrl.objectives import PPOLoss
from torchrl.objectives.llm import CISPOLoss

from agents.functional import reward_to_go
from experiments.peers.torchrl_losses import GRPO, PPO
from experiments.peers.toys import BETA, toy
from tests.helpers.peers import Batch, off_policy_batch

ROWS = [[0, 4], [1, 12], [7, 3]]  # of one to three tokens
QUIET: dict[str, Any] = {"entropy_bonus": False}


def surrogate(batch: Batch, weights: Tensor, clip: float = 0.2) -> Tensor:
    """The clipped loss of each token, [B, T]."""
    ratio = (batch.log_probs - batch.rollout.log_probs).exp()
    return -torch.minimum(ratio * weights, ratio.clamp(1 - clip, 1 + clip) * weights) * batch.rollout.mask


def of_step(batch: Batch) -> Tensor:
    """G_t - V(s_t)."""
    return reward_to_go(batch.rollout.rewards, batch.rollout.mask) - batch.values


def of_group(batch: Batch) -> Tensor:
    """The score, whitened, [B, 1]."""
    scores = batch.rollout.scores
    return ((scores - scores.mean()) / scores.std())[:, None]


def k3(batch: Batch) -> Tensor:
    """k3 of each token, [B, T]."""
    difference = (batch.rollout.ref_log_probs - batch.log_probs) * batch.rollout.mask
    return difference.exp() - 1 - difference


def tokens(batch: Batch) -> Tensor:
    """The number of tokens."""
    return batch.rollout.mask.sum()


def entries(batch: Batch) -> int:
    """Entries of the padded batch; the prompt has one token."""
    return len(batch.log_probs) * (1 + int(batch.rollout.mask.sum(dim=1).max()))


def critic(batch: Batch) -> Tensor:
    """The loss of V, which has no gradient here."""
    error = of_step(batch)[batch.rollout.mask]
    return smooth_l1_loss(error, torch.zeros_like(error))


def whitened(batch: Batch) -> Tensor:
    """G_t - V(s_t), whitened over the tokens of the batch."""
    kept = of_step(batch)[batch.rollout.mask]
    return (of_step(batch) - kept.mean()) / kept.std()


BY_HAND = {
    "PPO": (PPO(PPOLoss, **QUIET), lambda b: surrogate(b, of_step(b), 1e9).sum() / tokens(b) + critic(b)),
    "clipped PPO": (PPO(**QUIET), lambda b: surrogate(b, of_step(b)).sum() / tokens(b) + critic(b)),
    "summed": (PPO(reduction="sum", **QUIET), lambda b: surrogate(b, of_step(b)).sum() + tokens(b) * critic(b)),
    "whitened": (
        PPO(normalize_advantage=True, **QUIET),
        lambda b: surrogate(b, whitened(b)).sum() / tokens(b) + critic(b),
    ),
    "GRPO": (GRPO(**QUIET), lambda b: surrogate(b, of_group(b)).sum() / tokens(b)),
    "GRPO, KL": (
        GRPO(kl_to_ref_coeff=BETA, **QUIET),
        lambda b: surrogate(b, of_group(b)).sum() / tokens(b) + BETA * k3(b).sum() / entries(b),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_batch_has_the_loss_that_is_computed_by_hand(name: str) -> None:
    """Value and gradient, off policy."""
    loss, by_hand = BY_HAND[name]
    for rows in ROWS:
        batch = off_policy_batch(toy(), rows)
        table = batch.all_log_probs.clone().requires_grad_()
        more = {"values": batch.values} if isinstance(loss, PPO) else {}
        found = loss(batch.rollout, batch.log_probs, table, **more)
        taken = table.gather(2, batch.rollout.input_ids[:, -table.shape[1] :, None])[:, :, 0]
        expected = by_hand(Batch(batch.rollout, taken, table, batch.values))
        assert found.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-7)
        # by the logits: TorchRL normalises them once more
        one, other = (torch.autograd.grad(each, table, retain_graph=True)[0] for each in (found, expected))
        other = other - table.detach().exp() * other.sum(dim=2, keepdim=True)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_what_is_computed_by_hand_is_not_met_by_any_loss() -> None:
    """Negative control: the KL as a mean over tokens, rewards that come before, no KL."""
    batch = off_policy_batch(toy(), ROWS[1])
    found = BY_HAND["GRPO, KL"][0](batch.rollout, batch.log_probs, batch.all_log_probs).item()
    policy = surrogate(batch, of_group(batch)).sum() / tokens(batch)
    assert abs(found - (policy + BETA * k3(batch).sum() / tokens(batch)).item()) > 1e-3
    assert abs(found - policy.item()) > 1e-3
    of_ppo = BY_HAND["clipped PPO"][0](batch.rollout, batch.log_probs, batch.all_log_probs, batch.values).item()
    late = batch.rollout.rewards.cumsum(dim=1) - batch.values
    assert abs(of_ppo - (surrogate(batch, late).sum() / tokens(batch) + critic(batch)).item()) > 1e-3


def test_a_token_beyond_the_bounds_has_no_gradient_in_cispo() -> None:
    """Unlike in arXiv:2506.13585. Control: one within the bounds has."""
    batch = off_policy_batch(toy(), ROWS[1])
    table = batch.all_log_probs.clone().requires_grad_()
    loss = GRPO(CISPOLoss, **QUIET)(batch.rollout, batch.log_probs, table)
    gradient = torch.autograd.grad(loss, table)[0].abs().sum(dim=2)
    beyond = ((batch.log_probs - batch.rollout.log_probs).exp() - 1).abs() > 0.2
    mask = batch.rollout.mask
    assert (gradient[mask & beyond] == 0).all() and (gradient[mask & ~beyond] > 0).all()
    assert (mask & beyond).any() and (mask & ~beyond).any()
