"""Diagnostics against their definitions, computed entry by entry."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.functional import explained_variance, policy_diagnostics, surrogate_diagnostics
from tests.helpers.batches import Batch, batches, padded, properties


def surrogate_info(batch: Batch, clip_range: float | None = 0.2) -> dict[str, float]:
    """The metrics of the surrogate loss."""
    info = surrogate_diagnostics(
        batch["log_probs"], batch["old_log_probs"], batch["rewards"], batch["mask"], clip_range
    )
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


@properties
@given(batch=batches(), columns=st.integers(0, 4), seed=st.integers(0, 99))
def test_padding_changes_no_diagnostic(batch: Batch, columns: int, seed: int) -> None:
    """Garbage after the completions changes none of them. Control: without the mask it changes most."""
    longer = padded(batch, columns, seed)
    assert surrogate_info(longer) == pytest.approx(surrogate_info(batch), rel=1e-6, abs=1e-9)
    if columns:
        unmasked = longer | {"mask": torch.ones_like(longer["mask"])}
        assert surrogate_info(unmasked) != pytest.approx(surrogate_info(batch), rel=1e-6, abs=1e-9)


@properties
@given(batches(), st.sampled_from([0.2, None]))
def test_at_the_old_policy_the_ratio_is_one(batch: Batch, clip_range: float | None) -> None:
    """rho = 1 everywhere, the KL is 0 and the clip does not bind; control: elsewhere the ratio is not 1."""
    found = surrogate_info(batch | {"log_probs": batch["old_log_probs"]}, clip_range)
    assert (found["val/ratio"], found["val/ratio_error_max"], found["policy/approxkl_avg"]) == (1.0, 0.0, 0.0)
    assert found["policy/clipfrac_avg"] == 0.0 < surrogate_info(batch, clip_range)["val/ratio_error_max"]


@pytest.mark.parametrize("name", ["log_probs", "old_log_probs", "advantages"])
def test_a_diagnostic_refuses_other_shapes(name: str) -> None:
    """[B] would broadcast where B = T."""
    right = {each: torch.zeros(3, 3) for each in ("log_probs", "old_log_probs", "advantages")}
    mask = torch.ones(3, 3, dtype=torch.bool)
    assert surrogate_diagnostics(**right, mask=mask, clip_range=0.2)["val/ratio"] == 1.0
    wrong = right | {name: torch.zeros(3)}
    with pytest.raises(ValueError, match=f"^{name} must have the shape"):
        surrogate_diagnostics(**wrong, mask=mask, clip_range=0.2)
    if name != "advantages":
        with pytest.raises(ValueError, match=f"^{name} must have the shape"):
            policy_diagnostics(torch.zeros(()), wrong["log_probs"], wrong["old_log_probs"], mask)


def test_explained_variance_is_one_for_the_returns_and_zero_for_a_constant() -> None:
    """1 for the returns themselves, 0 for any constant, negative for worse than a constant."""
    returns, mask = torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(1, 3, dtype=torch.bool)
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.full_like(returns, 3.0), returns, mask) == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0, abs=1e-5)
