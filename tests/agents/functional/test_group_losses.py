"""The losses of GRPO and its successors against their papers' equations, in loops over completions and tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from agents.functional import (
    GROUP_LOSSES,
    clipped_surrogate_loss,
    completion_weights,
    group_loss,
    policy_gradient_loss,
)
from tests.helpers.batches import Batch, batches, close, padded, properties

LOW, HIGH = 0.2, 0.28
NAMES = list(GROUP_LOSSES)
every_loss = pytest.mark.parametrize("name", NAMES)


def clipped(rho: Tensor, advantage: Tensor) -> Tensor:
    """PPO's clip of one token."""
    return torch.minimum(rho * advantage, rho.clamp(1 - LOW, 1 + HIGH) * advantage)


def sapo(rho: Tensor, advantage: Tensor) -> Tensor:
    """SAPO's soft gate of one token; its temperatures are 1 and 1.05."""
    tau = 1.0 if advantage > 0 else 1.05
    return 4 / tau / (1 + torch.exp(-tau * (rho - 1))) * advantage


def written_out(name: str, batch: Batch, log_probs: Tensor) -> Tensor:
    """Each loss as its paper has it, in loops; of CISPO a number with the same gradient."""
    lengths = batch["mask"].sum(dim=1).tolist()
    total = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate(lengths):
        log_ratio = (log_probs[row] - batch["old_log_probs"][row])[:length]
        advantages, count = batch["rewards"][row, :length], len(lengths)
        if name == "gspo":
            s = (log_ratio.sum() / length).exp()
            total = total + clipped(s, advantages[0]) / count
        for t in range(length):
            rho, advantage = log_ratio[t].exp(), advantages[t]
            if name == "dr_grpo":
                total = total + clipped(rho, advantage) / count
            elif name == "grpo":
                total = total + clipped(rho, advantage) / length / count
            elif name == "dapo":
                total = total + clipped(rho, advantage) / sum(lengths)
            elif name == "cispo":
                weight = min(rho.item(), 1 + HIGH)
                total = total + weight * advantage * log_probs[row, t] / sum(lengths)
            elif name == "sapo":
                total = total + sapo(rho, advantage) / length / count
    return -total


def gradient(loss: Callable[[Tensor], Tensor], log_probs: Tensor) -> Tensor:
    """By log_probs, [B, T]."""
    leaf = log_probs.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


def found(name: Any, batch: Batch, log_probs: Tensor, **more: Any) -> Tensor:
    """The loss of a batch whose rewards are the advantages."""
    return group_loss(name, log_probs, batch["old_log_probs"], batch["rewards"], batch["mask"], LOW, HIGH, **more)


def of_completions(batch: Batch) -> Batch:
    """The batch with one advantage a completion."""
    return batch | {"rewards": batch["rewards"][:, :1].expand_as(batch["mask"]).clone()}


@every_loss
@properties
@given(batches())
def test_a_loss_is_that_of_its_paper(name: str, batch: Batch) -> None:
    """Value and gradient; of CISPO the gradient, as its value has log rho for log pi."""
    batch = of_completions(batch)
    if name != "cispo":
        assert close(found(name, batch, batch["log_probs"]), written_out(name, batch, batch["log_probs"]))
    ours, theirs = (
        gradient(lambda x, loss=loss: loss(name, batch, x), batch["log_probs"])  # type: ignore[misc]
        for loss in (found, written_out)
    )
    assert close(ours, theirs)


def test_the_losses_differ() -> None:
    """Control of the test above: on completions of two lengths, far from the old policy, no two gradients are equal."""
    generator = torch.Generator().manual_seed(0)
    log_probs, old = torch.randn(2, 2, 3, dtype=torch.float64, generator=generator)
    batch = {"old_log_probs": old, "rewards": torch.tensor([[1.0], [-1.0]]).double().expand(2, 3).clone()}
    batch["mask"] = torch.tensor([[True, True, True], [True, False, False]])
    gradients = [gradient(lambda x, name=name: found(name, batch, x), log_probs) for name in NAMES]  # type: ignore[misc]
    assert not any(close(a, b) for i, a in enumerate(gradients) for b in gradients[:i])


@every_loss
@properties
@given(batches())
def test_at_the_old_policy_a_loss_has_the_policy_gradient(name: Any, batch: Batch) -> None:
    """With the advantages times c_i; the slope of each surrogate by rho is 1 at rho = 1."""
    batch = of_completions(batch)
    weights = completion_weights(name, batch["mask"])
    ours = gradient(lambda x: found(name, batch, x), batch["old_log_probs"])
    theirs = gradient(
        lambda x: policy_gradient_loss(x, weights * batch["rewards"], batch["mask"]), batch["old_log_probs"]
    )
    assert close(ours, theirs)


@every_loss
@properties
@given(batches(max_tokens=1))
def test_with_one_token_only_the_surrogates_differ(name: Any, batch: Batch) -> None:
    """A completion, its sequence and its token are one: all but CISPO and SAPO are PPO's loss."""
    expected = clipped_surrogate_loss(
        batch["log_probs"], batch["old_log_probs"], batch["rewards"], batch["mask"], LOW, HIGH
    )
    assert close(found(name, batch, batch["log_probs"]), expected) == (name not in ("cispo", "sapo"))


@every_loss
@properties
@given(batches(), batches())
def test_padding_changes_nothing(name: Any, batch: Batch, other: Batch) -> None:
    """More columns, and garbage where the mask is False."""
    longer = padded(batch, other["mask"].shape[1], seed=1)
    assert close(found(name, batch, batch["log_probs"]), found(name, longer, longer["log_probs"]))


@every_loss
@properties
@given(batches(max_rows=4))
def test_micro_batches_add_up(name: Any, batch: Batch) -> None:
    """Given the weights of the whole batch, the mean of the losses of single completions is that of the batch."""
    weights = completion_weights(name, batch["mask"])
    singles = [
        found(name, {key: x[[row]] for key, x in batch.items()}, batch["log_probs"][[row]], weights=weights[[row]])
        for row in range(len(weights))
    ]
    assert close(torch.stack(singles).mean(), found(name, batch, batch["log_probs"]))


def test_without_the_weights_of_the_batch_micro_batches_do_not_add_up() -> None:
    """Control: DAPO's divisor is that of the whole batch."""
    mask = torch.tensor([[True, True, True], [True, False, False]])
    batch = {"old_log_probs": torch.zeros(2, 3), "rewards": torch.ones(2, 3), "mask": mask}
    log_probs = torch.tensor([[0.1, 0.1, 0.1], [0.05, 0.0, 0.0]])
    singles = [found("dapo", {k: x[[row]] for k, x in batch.items()}, log_probs[[row]]) for row in range(2)]
    assert abs(float(torch.stack(singles).mean() / found("dapo", batch, log_probs)) - 1) > 1e-3


@pytest.mark.parametrize("rho", [0.5, 1.0, 1.5, 30.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_what_becomes_of_a_ratio_far_from_one(rho: float, advantage: float) -> None:
    """PPO's clip drops a token, CISPO bounds its weight, SAPO lets it fade."""
    mask, old = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.float64)
    batch = {"old_log_probs": old, "rewards": torch.full((1, 1), advantage).double(), "mask": mask}
    log_probs = torch.full((1, 1), rho, dtype=torch.float64).log()
    slope = {name: -float(gradient(lambda x, n=name: found(n, batch, x), log_probs)) / advantage for name in NAMES}  # type: ignore[misc]
    dropped = (rho > 1 + HIGH and advantage > 0) or (rho < 1 - LOW and advantage < 0)
    assert slope["dr_grpo"] == pytest.approx(0.0 if dropped else rho)
    assert slope["cispo"] == pytest.approx(min(rho, 1 + HIGH))
    tau = 1.0 if advantage > 0 else 1.05
    gate = 1 / (1 + torch.exp(torch.tensor(-tau * (rho - 1), dtype=torch.float64)))
    assert slope["sapo"] == pytest.approx(float(4 * gate * (1 - gate)) * rho)


def test_a_skipped_completion_does_not_count() -> None:
    """A row without a token changes neither the mean over completions nor the mean length."""
    mask = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
    generator = torch.Generator().manual_seed(1)
    log_probs, old, advantages = torch.randn(3, 3, 3, generator=generator)
    batch = {"old_log_probs": old, "rewards": advantages, "mask": mask}
    kept = {key: x[[0, 2]] for key, x in batch.items()}
    for name in NAMES:
        torch.testing.assert_close(found(name, batch, log_probs), found(name, kept, log_probs[[0, 2]]))
    assert all(found(n, {k: x[[1]] for k, x in batch.items()}, log_probs[[1]]) == 0 for n in NAMES)


def test_other_shapes_are_refused() -> None:
    """Advantages [B] would broadcast where B = T."""
    x, mask = torch.zeros(3, 3), torch.ones(3, 3, dtype=torch.bool)
    assert group_loss("dapo", x, x, x, mask) == 0
    for wrong in [(x[0], x, x), (x, x[0], x), (x, x, x[0])]:
        with pytest.raises(ValueError, match="must have the shape of the bool mask"):
            group_loss("dapo", *wrong, mask)
