"""The loss of PathConsistency against its equation, in loops over completions and tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agents.functional import leave_one_out, path_consistency_loss, policy_gradient_loss, regularized_returns
from tests.helpers.batches import Batch, close, padded, properties


@st.composite
def grouped(draw: Any) -> tuple[Batch, int, float]:
    """Groups of completions of 0 .. T tokens (0: skipped), K, and beta."""
    size, groups, tokens = draw(st.integers(2, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    lengths = draw(st.lists(st.integers(0, tokens), min_size=size * groups, max_size=size * groups))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    names = ("rewards", "log_probs", "ref_log_probs")
    shape = (size * groups, tokens)
    batch: Batch = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name in names}
    batch["mask"] = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    return batch, size, draw(st.floats(0.01, 2.0))


def loss_of(batch: Batch, size: int, beta: float) -> Tensor:
    """The loss of a batch."""
    return path_consistency_loss(
        batch["log_probs"], batch["ref_log_probs"], batch["rewards"], batch["mask"], beta, size
    )


def written_out(batch: Batch, size: int, beta: float) -> Tensor:
    """sum_groups n Var_{n-1}(R) / (2 beta), over the number of completions in groups with n > 1 left."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for first in range(0, len(batch["mask"]), size):
        found = []
        for i in range(first, first + size):
            terms = [
                batch["rewards"][i, t] - beta * (batch["log_probs"][i, t] - batch["ref_log_probs"][i, t])
                for t in range(batch["mask"].shape[1])
                if batch["mask"][i, t]
            ]
            found += [sum(terms)] if terms else []
        if len(found) > 1:
            total = total + len(found) * torch.stack(found).var() / (2 * beta)
            count += len(found)
    return total / max(1, count)


@properties
@given(grouped())
def test_the_loss_is_its_equation(case: tuple[Batch, int, float]) -> None:
    """Its gradient too, also where completions are skipped."""
    gradients = []
    for function in (loss_of, written_out):
        log_probs = case[0]["log_probs"].clone().requires_grad_()
        loss = function(case[0] | {"log_probs": log_probs}, *case[1:])
        assert close(loss, written_out(*case))
        found = torch.autograd.grad(loss, log_probs, allow_unused=True)[0] if loss.requires_grad else None
        gradients.append(torch.zeros_like(log_probs) if found is None else found)
    assert close(*gradients)


@properties
@given(grouped(), st.integers(0, 3), st.integers(0, 999))
def test_padding_changes_nothing(case: tuple[Batch, int, float], columns: int, seed: int) -> None:
    """Neither columns of it nor what stands there."""
    assert close(loss_of(padded(case[0], columns, seed), *case[1:]), loss_of(*case))


@properties
@given(grouped())
def test_the_gradient_is_that_of_the_leave_one_out_loss_of_the_same_returns(case: tuple[Batch, int, float]) -> None:
    """- (R_i - b_i) grad log pi(y_i|x), for whole groups. Control: with the plain mean it is another one."""
    batch, size, beta = case
    batch = batch | {"mask": torch.ones_like(batch["mask"])}
    log_probs, mask = batch["log_probs"].clone().requires_grad_(), batch["mask"]
    found = torch.autograd.grad(loss_of(batch | {"log_probs": log_probs}, size, beta), log_probs)[0]
    returns = regularized_returns(batch["log_probs"], batch["ref_log_probs"], batch["rewards"], mask, beta)

    def gradient(baselines: Tensor) -> Tensor:
        weights = (returns - baselines)[:, None].expand_as(mask)
        return torch.autograd.grad(policy_gradient_loss(log_probs, weights, mask), log_probs)[0]

    assert close(found, gradient(leave_one_out(returns, size)))
    means = returns.view(-1, size).mean(dim=1).repeat_interleave(size)
    assert not close(found, gradient(means))


@properties
@given(grouped(), st.floats(-3, 3))
def test_what_is_the_same_for_a_whole_group_changes_nothing(case: tuple[Batch, int, float], shift: float) -> None:
    """A prompt's bonus, or its Z. Control: the same for one completion alone."""
    batch, size, beta = case
    batch = batch | {"mask": torch.ones_like(batch["mask"])}
    bonus = torch.zeros_like(batch["rewards"])
    bonus[:size, 0] = shift
    assert close(loss_of(batch | {"rewards": batch["rewards"] + bonus}, size, beta), loss_of(batch, size, beta))
    bonus[1:] = 0.0
    bonus[0, 0] = 1.0
    assert not close(loss_of(batch | {"rewards": batch["rewards"] + bonus}, size, beta), loss_of(batch, size, beta))


def test_what_has_no_meaning_is_refused() -> None:
    """Another shape, no KL, no groups."""
    x, mask = torch.zeros(4, 3), torch.ones(4, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"rewards must have the shape of the bool mask, \(4, 3\), got \(4,\)"):
        path_consistency_loss(x, x, x[:, 0], mask, 0.1, 2)
    for beta in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"kl_coef > 0, got {beta}"):
            path_consistency_loss(x, x, x, mask, beta, 2)
    for size in (1, 3):
        with pytest.raises(ValueError, match="num_generations|shape"):
            path_consistency_loss(x, x, x, mask, 0.1, size)
    assert path_consistency_loss(x, x, x, mask, 0.1, 2) == 0.0
