"""What a loss on text owes: right losses hold in every line, and each fault is named in its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from agents import GRPO, PPO, REINFORCE, RLOO
from agents.functional import k3, leave_one_out, reward_to_go
from agents.sampling import Rollout
from agents.verification import agent_loss, verify
from tests.helpers.losses import FAULTS, relative, returns, small, to_go, weighted

LINES = ["padding", "pad == eos", "longer prompt", "micro-batches", "ratio 1 at first"]
CREDIT = ["score", "last token", "earlier tokens", "length", "KL in the rewards"]


def broken(loss: Any, num_generations: int = 2) -> dict[str, str]:
    """The lines of the report that do not hold, with what is printed of them."""
    report = verify(loss, small(num_prompts=1), num_generations=num_generations)
    assert list(report.invariances) == [*LINES, *CREDIT]
    return {name: str(each) for name, each in report.invariances.items() if not each.holds}


@pytest.mark.parametrize(
    ("loss", "num_generations"),
    [
        (to_go, 1),
        (relative, 2),
        (agent_loss(REINFORCE, credit="q"), 2),
        (agent_loss(PPO, "zero", gae_lambda=1.0), 1),
        (agent_loss(RLOO), 2),
        (agent_loss(GRPO), 2),
    ],
)
def test_all_hold_of_right_losses(loss: Any, num_generations: int) -> None:
    """Also of GRPO, whose scale is constant at the same scores: its bias is in the numbers above."""
    assert broken(loss, num_generations) == {}


@pytest.mark.parametrize(
    ("fault", "lines", "words"),
    [
        ("a score one column late", {*CREDIT}, "one column late"),
        (
            "a score one column late, unmasked",
            {"padding", *CREDIT},
            "one column late",
        ),
        ("mean over tokens", {"micro-batches", "length"}, "a mean over tokens"),
        ("mean over the tokens of each completion", {"length"}, "a mean over tokens"),
        ("the log-ratio reversed", {"KL in the rewards"}, "the wrong way round"),
        ("k3 in the rewards", {"KL in the rewards"}, "another estimator than k1"),
        ("the log-ratio of the rewards reversed", {"KL in the rewards"}, "the wrong way round"),
        ("whitened over padding", {"padding", "micro-batches", "length"}, "padding included"),
        ("no mask", {"padding"}, "without the mask"),
        ("without the last token", {"last token", "earlier tokens", "length"}, "EOS, gets no credit"),
        ("another temperature", {"ratio 1 at first", "earlier tokens", "length"}, "without the temperature"),
        ("rewards that come before", {"earlier tokens"}, "the reward in place of the return"),
        ("a discount", {"earlier tokens"}, "gamma or lambda below 1"),
        ("half of beta", {"KL in the rewards"}, "beta is 0.5 times the task's"),
        ("the KL twice", {"KL in the rewards"}, "beta is 2 times the task's"),
        ("a mean of the KL over tokens", {"KL in the rewards"}, "or a mean over tokens"),
        ("a mask from the padding token", {"pad == eos", "micro-batches"}, "pad_token_id"),
        ("divided by the whole sequence", {"longer prompt", "length"}, "the whole attention_mask"),
        ("no KL", {"KL in the rewards"}, "there is none"),
        ("k1 in the loss", {"KL in the rewards"}, "k1 in the loss is a constant"),
        ("k3 in the loss", {"KL in the rewards"}, "the gradient of k3"),
        ("k3 times rho in the loss", {"KL in the rewards"}, "the gradient of k2 or of k3 times rho"),
    ],
)
def test_each_fault_is_named(fault: str, lines: set[str], words: str) -> None:
    """In these lines and in no others. Control: the test above."""
    found = broken((FAULTS | OTHERS)[fault])
    assert set(found) == lines and words in "\n".join(found.values())


def own_rewards(cost: Any) -> Any:
    """Scores less a cost of the log-ratios [B, T], that the loss computes itself."""

    def loss(rollout: Rollout, log_probs: Tensor) -> Tensor:
        log_ratio = rollout.log_probs - rollout.ref_log_probs
        gains = (rollout.scores - cost(log_ratio, rollout.mask).sum(dim=1)).view(-1, 2)
        return weighted(log_probs, (gains - gains.flip(1)).flatten()[:, None], rollout.mask)

    return loss


def late(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """Rewards one column to the right, summed without a mask: only the longest completions lose their score."""
    rewards = torch.nn.functional.pad(rollout.rewards, (1, 0))[:, :-1]
    return weighted(log_probs, reward_to_go(rewards, torch.ones_like(rollout.mask)), rollout.mask)


def reversed_in_rewards(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """score + beta log pi / pi_ref."""
    gains = rollout.scores + 0.2 * (rollout.log_probs - rollout.ref_log_probs).sum(dim=1)
    return weighted(log_probs, gains[:, None], rollout.mask)


def of_padding_token(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """Whatever is no token 0."""
    advantages = returns(rollout) - leave_one_out(returns(rollout), 2, rollout.valid)
    count = (rollout.tokens != 0).sum().clamp(min=1)
    return weighted(log_probs, advantages[:, None], rollout.mask) / count * count.detach().sqrt()


def in_loss(penalty: Any) -> Any:
    """The scores of groups of 2, and a KL penalty in the loss."""

    def loss(rollout: Rollout, log_probs: Tensor) -> Tensor:
        scores = rollout.scores - leave_one_out(rollout.scores, 2, rollout.valid)
        cost = torch.where(rollout.mask, penalty(log_probs, rollout), 0.0).sum() / len(log_probs)
        return weighted(log_probs, scores[:, None], rollout.mask) + 0.2 * cost

    return loss


def k3_in_rewards(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """score - beta k3."""
    gains = rollout.scores - 0.2 * k3(rollout.log_probs - rollout.ref_log_probs).sum(dim=1)
    return weighted(log_probs, gains[:, None], rollout.mask)


OTHERS: dict[str, Any] = {
    "a discount": lambda rollout, log_probs: weighted(
        log_probs, reward_to_go(rollout.rewards, rollout.mask, 0.9), rollout.mask
    ),
    "half of beta": own_rewards(lambda log_ratio, mask: 0.1 * log_ratio),
    "the KL twice": lambda rollout, log_probs: weighted(
        log_probs, (2 * returns(rollout) - rollout.scores)[:, None], rollout.mask
    ),
    "a mean of the KL over tokens": own_rewards(
        lambda log_ratio, mask: 0.2 * log_ratio / mask.sum(dim=1, keepdim=True)
    ),
    "no mask": lambda rollout, log_probs: -(returns(rollout)[:, None] * log_probs).sum() / len(log_probs),
    "k3 in the rewards": k3_in_rewards,
    "a score one column late, unmasked": late,
    "the log-ratio of the rewards reversed": reversed_in_rewards,
    "mean over the tokens of each completion": lambda rollout, log_probs: weighted(
        log_probs / rollout.mask.sum(dim=1, keepdim=True), returns(rollout)[:, None], rollout.mask
    ),
    "a mask from the padding token": of_padding_token,
    "divided by the whole sequence": lambda rollout, log_probs: weighted(
        log_probs / rollout.attention_mask.sum(dim=1, keepdim=True), returns(rollout)[:, None], rollout.mask
    ),
    "no KL": in_loss(lambda log_probs, rollout: 0.0 * log_probs),
    "k1 in the loss": in_loss(lambda log_probs, rollout: log_probs - rollout.ref_log_probs),
    "k3 in the loss": in_loss(lambda log_probs, rollout: k3(log_probs - rollout.ref_log_probs)),
    "k3 times rho in the loss": in_loss(
        lambda log_probs, rollout: (log_probs - rollout.log_probs).exp() * k3(log_probs - rollout.ref_log_probs)
    ),
}


def one_group(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """A loss that is written for a batch of one group of two."""
    first, second = returns(rollout)
    return weighted(log_probs, torch.stack([first - second, second - first])[:, None], rollout.mask)


def everything(rollout: Rollout, log_probs: Tensor, all_log_probs: Tensor, ref_all_log_probs: Tensor) -> Tensor:
    """The exact KL of each state."""
    kl = (all_log_probs.exp() * (all_log_probs - ref_all_log_probs)).sum(dim=2)
    return in_loss(lambda *_: kl)(rollout, log_probs)


def constant_baseline(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """REINFORCE with a number as the baseline."""
    return weighted(log_probs, (returns(rollout) - 0.7)[:, None], rollout.mask)


def relative_to_spread(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """GRPO, with rewards that the loss computes itself."""
    gains = (rollout.scores - 0.2 * (rollout.log_probs - rollout.ref_log_probs).sum(dim=1)).view(-1, 2)
    advantages = (gains - gains.mean(dim=1, keepdim=True)) / (gains.std(dim=1, keepdim=True) + 1e-6)
    return weighted(log_probs, advantages.flatten()[:, None], rollout.mask)


def test_right_losses_raise_no_alarm() -> None:
    """A constant baseline; scaled rewards with their KL; V, which stands for what follows; a score where beta is 0."""
    assert broken(constant_baseline) == broken(relative_to_spread) == {}
    assert broken(agent_loss(PPO), 1) == {
        "earlier tokens": "earlier tokens: not tested, since V may stand for what follows"
    }
    report = verify(
        in_loss(lambda log_probs, rollout: 0.0 * log_probs), small(num_prompts=1, kl_coef=0.0), num_generations=2
    )
    assert not any(each.broken for each in report.invariances.values())


def test_what_cannot_be_tested_is_shown_as_such() -> None:
    """Micro-batches of a loss for one group; ratio and KL of a loss that reads all log-probs."""
    assert "micro-batches: not tested, since the loss fails on 4" in broken(one_group)["micro-batches"]
    found = broken(everything)
    assert set(found) == {"ratio 1 at first", "KL in the rewards"} and "not tested" in found["ratio 1 at first"]


def test_gradients_at_padding_are_found() -> None:
    """A loss that forgets the mask where it reads all log-probs. Control: with the mask it holds."""

    def forgets(rollout: Rollout, log_probs: Tensor, all_log_probs: Tensor) -> Tensor:
        return to_go(rollout, log_probs) + 0.1 * all_log_probs.exp().square().sum() / len(log_probs)

    def keeps(rollout: Rollout, log_probs: Tensor, all_log_probs: Tensor) -> Tensor:
        squares = all_log_probs.exp().square().sum(dim=2)
        return to_go(rollout, log_probs) + 0.1 * (squares * rollout.mask).sum() / len(log_probs)

    assert "padding" in broken(forgets) and "padding" not in broken(keeps)
