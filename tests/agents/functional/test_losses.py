"""Losses against their definitions, computed entry by entry."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agents.functional import (
    clipped_surrogate_loss,
    masked_mean,
    mean_over_completions,
    policy_gradient_loss,
    value_loss,
)
from tests.helpers.batches import Batch, batches, close, padded, properties

# -- padding ---------------------------------------------------------------------------------------------------------


LOSSES: dict[str, Callable[[Batch], Tensor]] = {
    "mean_over_completions": lambda b: mean_over_completions(b["rewards"], b["mask"]),
    "policy_gradient_loss": lambda b: policy_gradient_loss(b["log_probs"], b["rewards"], b["mask"]),
    "clipped_surrogate_loss": lambda b: clipped_surrogate_loss(
        b["log_probs"], b["old_log_probs"], b["rewards"], b["mask"], 0.2
    ),
    "surrogate_loss_without_a_clip": lambda b: clipped_surrogate_loss(
        b["log_probs"], b["old_log_probs"], b["rewards"], b["mask"], None
    ),
    "value_loss": lambda b: value_loss(b["values"], b["rewards"], b["mask"]),
    "clipped_value_loss": lambda b: value_loss(b["values"], b["rewards"], b["mask"], b["old_log_probs"], 0.2),
}


@pytest.mark.parametrize("name", LOSSES)
@properties
@given(batch=batches(), columns=st.integers(0, 4), seed=st.integers(0, 99))
def test_padding_changes_no_loss(name: str, batch: Batch, columns: int, seed: int) -> None:
    """Garbage after the completions changes no loss."""
    short, long = LOSSES[name](batch), LOSSES[name](padded(batch, columns, seed))
    assert torch.allclose(long.double(), short.double(), rtol=1e-6, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("name", ["policy_gradient_loss", "clipped_surrogate_loss", "value_loss", "clipped_value_loss"])
@properties
@given(batch=batches(), seed=st.integers(0, 99))
def test_padding_gets_no_gradient(name: str, batch: Batch, seed: int) -> None:
    """A loss has no gradient after the completions' ends."""
    batch = padded(batch, 2, seed)
    trained = "values" if "value" in name else "log_probs"
    batch[trained].requires_grad_()
    LOSSES[name](batch).backward()
    assert not batch[trained].grad[~batch["mask"]].any()


# -- policy losses ---------------------------------------------------------------------------------------------------


def surrogate_gradient(ratio: float, advantage: float, clip_range: float | None) -> tuple[float, float]:
    """The loss of one token at a ratio, and its derivative by log pi."""
    old = torch.tensor([[-1.0]], dtype=torch.float64)
    log_probs = (old + np.log(ratio)).requires_grad_()
    mask, weights = torch.ones(1, 1, dtype=torch.bool), torch.tensor([[advantage]], dtype=torch.float64)
    loss = clipped_surrogate_loss(log_probs, old, weights, mask, clip_range)
    loss.backward()
    assert log_probs.grad is not None
    return loss.item(), log_probs.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "binds"),
    [(1.5, 2.0, True), (1.1, 2.0, False), (0.5, 2.0, False), (0.5, -2.0, True), (0.9, -2.0, False), (1.5, -2.0, False)],
)
def test_the_clip_binds_where_it_is_pessimistic(ratio: float, advantage: float, binds: bool) -> None:
    """No gradient for A > 0 with rho > 1 + eps, nor for A < 0 with rho < 1 - eps; the unclipped gradient elsewhere."""
    loss, gradient = surrogate_gradient(ratio, advantage, 0.2)
    free_loss, free_gradient = surrogate_gradient(ratio, advantage, None)
    assert free_loss == pytest.approx(-ratio * advantage) and free_gradient == pytest.approx(-ratio * advantage)
    if binds:
        assert gradient == 0.0
        assert loss == pytest.approx(-advantage * (1.2 if advantage > 0 else 0.8))
    else:
        assert gradient == pytest.approx(free_gradient) and loss == pytest.approx(free_loss)


@properties
@given(batches())
def test_the_clipped_loss_is_an_upper_bound(batch: Batch) -> None:
    """The clipped loss is never below the unclipped one, because of the minimum in the objective."""
    arguments = (batch["log_probs"], batch["old_log_probs"], batch["rewards"], batch["mask"])
    assert clipped_surrogate_loss(*arguments, 0.2) >= clipped_surrogate_loss(*arguments, None) - 1e-12


@properties
@given(batches(), st.sampled_from([0.2, None]))
def test_at_ratio_one_the_surrogate_has_the_policy_gradient(batch: Batch, clip_range: float | None) -> None:
    """At the behaviour policy PPO's gradient is the policy gradient."""
    log_probs, mask = batch["log_probs"], batch["mask"]
    ours, theirs = log_probs.clone().requires_grad_(), log_probs.clone().requires_grad_()
    clipped_surrogate_loss(ours, log_probs, batch["rewards"], mask, clip_range).backward()
    policy_gradient_loss(theirs, batch["rewards"], mask).backward()
    assert ours.grad is not None and theirs.grad is not None and close(ours.grad, theirs.grad)


def test_losses_are_means_over_completions_not_over_tokens() -> None:
    """Long and short completions have equal weight: the loss of two is the mean of the losses of each."""
    rng = np.random.default_rng(0)
    log_probs, weights = (torch.as_tensor(rng.normal(size=(2, 4))) for _ in range(2))
    mask = torch.tensor([[True] * 4, [True, False, False, False]])
    each = [policy_gradient_loss(log_probs[i : i + 1], weights[i : i + 1], mask[i : i + 1]) for i in range(2)]
    both = policy_gradient_loss(log_probs, weights, mask)
    assert close(both, (each[0] + each[1]) / 2)
    assert not close(both, -masked_mean(log_probs * weights, mask))  # control: a mean over tokens is another number


def test_weights_are_constants() -> None:
    """Weights, advantages and returns get no gradient, although they may depend on the value head."""
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 3, dtype=torch.bool)
    for loss in (
        lambda w: policy_gradient_loss(x, w, mask),
        lambda w: clipped_surrogate_loss(x, x - 0.1, w, mask, 0.2),
        lambda w: value_loss(x, w, mask),
    ):
        assert not loss(x.clone().requires_grad_()).requires_grad


# -- value loss ------------------------------------------------------------------------------------------------------


@properties
@given(batches())
def test_the_value_loss_is_half_the_squared_error(batch: Batch) -> None:
    """1/2 (V - G)^2: its gradient is (V - G) / B, and its minimum is at V = G."""
    values, mask = batch["values"].requires_grad_(), batch["mask"]
    loss = value_loss(values, batch["rewards"], mask)
    loss.backward()
    assert values.grad is not None
    expected = torch.where(mask, values.detach() - batch["rewards"], 0.0) / len(mask)
    assert close(values.grad, expected)
    assert float(value_loss(batch["rewards"], batch["rewards"], mask)) == 0.0


@pytest.mark.parametrize(
    ("value", "target", "binds"),
    [(1.5, 2.0, True), (1.1, 2.0, False), (0.5, 0.0, True), (0.9, 0.0, False), (1.5, 0.0, False), (0.5, 2.0, False)],
)
def test_the_value_clip_is_pessimistic(value: float, target: float, binds: bool) -> None:
    """V that moved towards its target by more than the range gets no gradient; V that moved away gets all of it."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    values = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    old, returns = torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[target]], dtype=torch.float64)
    loss = value_loss(values, returns, mask, old, clip_range=0.2)
    loss.backward()
    assert values.grad is not None
    assert loss >= value_loss(values, returns, mask)
    assert float(values.grad) == pytest.approx(0.0 if binds else value - target)


def test_the_value_clip_needs_the_old_values() -> None:
    """A clip without old values is an error."""
    x, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="old_values"):
        value_loss(x, x, mask, clip_range=0.2)


# -- shapes ----------------------------------------------------------------------------------------------------------

# every argument that is a tensor, of every loss
ARGUMENTS: list[tuple[Callable[..., Tensor], tuple[str, ...], tuple[Any, ...]]] = [
    (mean_over_completions, ("x", "mask"), ()),
    (policy_gradient_loss, ("log_probs", "weights", "mask"), ()),
    (clipped_surrogate_loss, ("log_probs", "old_log_probs", "advantages", "mask"), (0.2,)),
    (clipped_surrogate_loss, ("log_probs", "old_log_probs", "advantages", "mask"), (None,)),
    (value_loss, ("values", "returns", "mask"), ()),
    (value_loss, ("values", "returns", "mask", "old_values"), (0.2,)),
]


@pytest.mark.parametrize(("loss", "names", "rest"), ARGUMENTS)
@pytest.mark.parametrize("shape", [(3,), (1, 3), (3, 1), (3, 2), (3, 3, 1)])
def test_an_argument_of_another_shape_is_refused(
    loss: Callable[..., Tensor], names: tuple[str, ...], rest: tuple[Any, ...], shape: tuple[int, ...]
) -> None:
    """With B = T = 3 most of these shapes would broadcast. Control: with the right shapes the loss is a number."""
    right = {name: torch.ones(3, 3, dtype=torch.bool if name == "mask" else torch.float32) for name in names}
    assert loss(*right.values(), *rest).ndim == 0
    assert {name for name in signature(loss).parameters if "clip" not in name} - {"old_values", "importance"} <= set(
        names
    )
    for name in names:
        wrong = right | {name: torch.ones(shape, dtype=right[name].dtype)}
        with pytest.raises(
            ValueError, match=r"must have the shape of the bool mask, \(" if name == "mask" else f"{name} must"
        ):
            loss(*wrong.values(), *rest)
    with pytest.raises(ValueError, match=r"mask must be a bool mask, got torch.float32"):
        loss(*(right | {"mask": torch.ones(3, 3)}).values(), *rest)
