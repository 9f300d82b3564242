"""Losses against their definitions, computed entry by entry."""

from __future__ import annotations

import itertools
from collections.abc import Callable

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
    )[0],
    "surrogate_loss_without_a_clip": lambda b: clipped_surrogate_loss(
        b["log_probs"], b["old_log_probs"], b["rewards"], b["mask"], None
    )[0],
    "value_loss": lambda b: value_loss(b["values"], b["rewards"], b["mask"]),
    "clipped_value_loss": lambda b: value_loss(b["values"], b["rewards"], b["mask"], b["old_log_probs"], 0.2),
}
for _name in (
    "val/ratio",
    "val/ratio_error_max",
    "val/ess",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "policy/clipfrac_high_avg",
    "policy/clipfrac_low_avg",
):
    LOSSES[_name] = lambda b, name=_name: clipped_surrogate_loss(
        b["log_probs"], b["old_log_probs"], b["rewards"], b["mask"], 0.2
    )[1][name]


@pytest.mark.parametrize("name", LOSSES)
@properties
@given(batch=batches(), columns=st.integers(0, 4), seed=st.integers(0, 99))
def test_padding_changes_no_loss(name: str, batch: Batch, columns: int, seed: int) -> None:
    """Garbage after the completions changes no loss and no metric."""
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


def surrogate_gradient(ratio: float, advantage: float, clip_range: float | None) -> tuple[float, float, float]:
    """The loss of one token at a ratio, its derivative by log pi, and the reported share of clipped tokens."""
    old = torch.tensor([[-1.0]], dtype=torch.float64)
    log_probs = (old + np.log(ratio)).requires_grad_()
    mask, weights = torch.ones(1, 1, dtype=torch.bool), torch.tensor([[advantage]], dtype=torch.float64)
    loss, info = clipped_surrogate_loss(log_probs, old, weights, mask, clip_range)
    loss.backward()
    assert log_probs.grad is not None
    return loss.item(), log_probs.grad.item(), float(info["policy/clipfrac_avg"])


@pytest.mark.parametrize(
    ("ratio", "advantage", "binds"),
    [(1.5, 2.0, True), (1.1, 2.0, False), (0.5, 2.0, False), (0.5, -2.0, True), (0.9, -2.0, False), (1.5, -2.0, False)],
)
def test_the_clip_binds_where_it_is_pessimistic(ratio: float, advantage: float, binds: bool) -> None:
    """No gradient for A > 0 with rho > 1 + eps, nor for A < 0 with rho < 1 - eps; the unclipped gradient elsewhere."""
    loss, gradient, fraction = surrogate_gradient(ratio, advantage, 0.2)
    free_loss, free_gradient, free_fraction = surrogate_gradient(ratio, advantage, None)
    assert free_loss == pytest.approx(-ratio * advantage) and free_gradient == pytest.approx(-ratio * advantage)
    assert fraction == float(binds) and free_fraction == 0.0
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
    assert clipped_surrogate_loss(*arguments, 0.2)[0] >= clipped_surrogate_loss(*arguments, None)[0] - 1e-12


@properties
@given(batches(), st.sampled_from([0.2, None]))
def test_at_ratio_one_the_surrogate_has_the_policy_gradient(batch: Batch, clip_range: float | None) -> None:
    """At the behaviour policy PPO's gradient is the policy gradient."""
    log_probs, mask = batch["log_probs"], batch["mask"]
    ours, theirs = log_probs.clone().requires_grad_(), log_probs.clone().requires_grad_()
    loss, info = clipped_surrogate_loss(ours, log_probs, batch["rewards"], mask, clip_range)
    loss.backward()
    policy_gradient_loss(theirs, batch["rewards"], mask).backward()
    assert ours.grad is not None and theirs.grad is not None and close(ours.grad, theirs.grad)
    assert float(info["val/ratio"]) == 1.0 and float(info["val/ratio_error_max"]) == 0.0


def surrogate_info(batch: Batch, clip_range: float | None = 0.2) -> dict[str, float]:
    """The metrics of the surrogate loss."""
    info = clipped_surrogate_loss(
        batch["log_probs"], batch["old_log_probs"], batch["rewards"], batch["mask"], clip_range
    )[1]
    return {name: float(value) for name, value in info.items()}


@properties
@given(batches(), st.integers(0, 99), st.sampled_from([0.2, None]))
def test_the_effective_sample_size_is_its_definition(batch: Batch, seed: int, clip_range: float | None) -> None:
    """val/ess is (sum rho)^2 / (n sum rho^2) over the real tokens, for every clip, advantage and padding."""
    rho = [
        float((batch["log_probs"] - batch["old_log_probs"])[row, t].exp())
        for row, t in torch.nonzero(batch["mask"]).tolist()
    ]
    expected = sum(rho) ** 2 / (len(rho) * sum(r * r for r in rho))
    found = surrogate_info(padded(batch, 2, seed), clip_range)["val/ess"]
    assert found == pytest.approx(expected, rel=1e-9) and 1 / len(rho) - 1e-9 <= found <= 1 + 1e-9
    if len(rho) < batch["mask"].numel() and len(rho) > 1:  # control: with padding it is another number
        everywhere = batch | {"mask": torch.ones_like(batch["mask"])}
        assert surrogate_info(everywhere, clip_range)["val/ess"] != pytest.approx(expected, rel=1e-9)


@properties
@given(batches(), st.floats(-2.0, 2.0))
def test_the_effective_sample_size_is_one_where_all_ratios_are_equal(batch: Batch, shift: float) -> None:
    """1 where all ratios are equal, whatever their value; the more they spread, the smaller it is."""
    log_probs, old = batch["log_probs"], batch["old_log_probs"]
    assert surrogate_info(batch | {"log_probs": old})["val/ess"] == pytest.approx(1.0, abs=1e-12)
    assert surrogate_info(batch | {"log_probs": old + shift})["val/ess"] == pytest.approx(1.0, abs=1e-12)
    shares = [
        surrogate_info(batch | {"log_probs": old + spread * (log_probs - old)})["val/ess"]
        for spread in (0.0, 0.25, 0.5, 1.0, 2.0)
    ]
    falls = [before - after for before, after in itertools.pairwise(shares)]
    assert all(fall > 0 for fall in falls) if batch["mask"].sum() > 1 else shares == pytest.approx([1.0] * 5)


def test_the_effective_sample_size_by_hand() -> None:
    """Ratios 1 and 3: 16 / (2 * 10); one of n ratios far above the rest: 1 / n."""
    mask, zeros = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.float64)
    batch = {"log_probs": torch.log(torch.tensor([[1.0, 3.0]])), "old_log_probs": zeros, "rewards": zeros, "mask": mask}
    assert surrogate_info(batch)["val/ess"] == pytest.approx(0.8)
    batch["log_probs"] = torch.tensor([[0.0, 30.0]])
    assert surrogate_info(batch)["val/ess"] == pytest.approx(0.5)
    batch["mask"] = torch.tensor([[True, False]])
    assert surrogate_info(batch)["val/ess"] == 1.0


@properties
@given(batches(), st.sampled_from([0.0, 0.2, 0.5, None]))
def test_the_clip_binds_on_two_sides(batch: Batch, clip_range: float | None) -> None:
    """Among A > 0 the share with rho > 1 + eps, among A < 0 that with rho < 1 - eps, among all tokens both."""
    high = low = positive = negative = 0
    tokens = torch.nonzero(batch["mask"]).tolist()
    for row, t in tokens:
        rho, advantage = float((batch["log_probs"] - batch["old_log_probs"])[row, t].exp()), batch["rewards"][row, t]
        positive, negative = positive + int(advantage > 0), negative + int(advantage < 0)
        high += int(clip_range is not None and advantage > 0 and rho > 1 + clip_range)
        low += int(clip_range is not None and advantage < 0 and rho < 1 - clip_range)
    info = surrogate_info(batch, clip_range)
    assert info["policy/clipfrac_high_avg"] == pytest.approx(high / max(positive, 1))
    assert info["policy/clipfrac_low_avg"] == pytest.approx(low / max(negative, 1))
    assert info["policy/clipfrac_avg"] == pytest.approx((high + low) / len(tokens))


@pytest.mark.parametrize(
    ("ratio", "advantage", "side"),
    [(1.5, 2.0, "high"), (0.5, -2.0, "low"), (1.5, -2.0, None), (0.5, 2.0, None), (1.5, 0.0, None), (1.1, 2.0, None)],
)
def test_each_side_of_the_clip_has_its_own_metric(ratio: float, advantage: float, side: str | None) -> None:
    """A > 0 with rho > 1 + eps counts as high, A < 0 with rho < 1 - eps as low, all else as neither."""
    batch = {
        "log_probs": torch.tensor([[np.log(ratio), 5.0]]),
        "old_log_probs": torch.zeros(1, 2),
        "rewards": torch.tensor([[advantage, 1.0]]),
        "mask": torch.tensor([[True, False]]),
    }
    info = surrogate_info(batch)
    for name in ("high", "low"):
        assert info[f"policy/clipfrac_{name}_avg"] == float(name == side)


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
        lambda w: clipped_surrogate_loss(x, x - 0.1, w, mask, 0.2)[0],
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
