"""Importance weights by token, sequence and prefix, and the weights that correct a sampler."""

from __future__ import annotations

from typing import Any, Literal, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.functional import Level, correction_weights, importance_log_ratio
from tests.helpers.batches import Batch, batches, close, padded, properties

LEVELS: list[Any] = list(get_args(Level))
every_level = pytest.mark.parametrize("level", LEVELS)


@every_level
@properties
@given(batches())
def test_a_log_ratio_is_the_sum_over_its_tokens(level: Any, batch: Batch) -> None:
    """Entry by entry; 0 where the mask is False."""
    found = importance_log_ratio(batch["log_probs"], batch["old_log_probs"], batch["mask"], level)
    for row, t in torch.nonzero(batch["mask"]).tolist():
        length = int(batch["mask"][row].sum())
        parts = (batch["log_probs"] - batch["old_log_probs"])[row, :length]
        expected = {"token": parts[t], "prefix": parts[: t + 1].sum(), "sequence": parts.sum()}
        expected["geometric"] = parts.mean()
        assert close(found[row, t], expected[level])
    assert not found[~batch["mask"]].any()


@every_level
@properties
@given(batches())
def test_the_gradient_is_that_of_the_token_alone(level: Any, batch: Batch) -> None:
    """grad rho_t = rho_t grad log pi(a_t|s_t), at every level: the weight of the policy gradient's term."""
    log_probs = batch["log_probs"].clone().requires_grad_()
    ratio = importance_log_ratio(log_probs, batch["old_log_probs"], batch["mask"], level).exp()
    (found,) = torch.autograd.grad((ratio * batch["rewards"]).sum(), log_probs)
    assert close(found, torch.where(batch["mask"], ratio.detach() * batch["rewards"], 0.0))


@every_level
@properties
@given(batches(max_tokens=1))
def test_with_one_token_all_levels_are_the_token(level: Any, batch: Batch) -> None:
    """The prefix, the sequence and its mean have one token."""
    arguments = (batch["log_probs"], batch["old_log_probs"], batch["mask"])
    assert close(importance_log_ratio(*arguments, level), importance_log_ratio(*arguments))


def test_with_two_tokens_the_levels_differ() -> None:
    """Control."""
    log_probs, mask = torch.tensor([[0.1, 0.4]]), torch.ones(1, 2, dtype=torch.bool)
    found = [importance_log_ratio(log_probs, torch.zeros(1, 2), mask, level).tolist()[0] for level in LEVELS]
    assert found == [pytest.approx(x) for x in ([0.1, 0.4], [0.5, 0.5], [0.1, 0.5], [0.25, 0.25])]


@every_level
@properties
@given(batches(), st.integers(1, 3))
def test_padding_changes_nothing(level: Any, batch: Batch, columns: int) -> None:
    """Garbage where the mask is False."""
    longer = padded(batch, columns, seed=2)
    short, long = (importance_log_ratio(b["log_probs"], b["old_log_probs"], b["mask"], level) for b in (batch, longer))
    assert close(short, long[:, :-columns]) and not long[:, -columns:].any()


# -- corrections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correction", ["truncate", "mask"])
@properties
@given(batches(), st.sampled_from(["token", "sequence", "prefix"]))
def test_weights_are_ratios_up_to_the_cap(correction: Literal["truncate", "mask"], batch: Batch, level: Any) -> None:
    """Above it the cap or 0; off the mask 0; 1 where sampler and trainer agree."""
    arguments = (batch["log_probs"], batch["old_log_probs"], batch["mask"])
    found = correction_weights(*arguments, correction, level, cap=1.5)
    ratio = importance_log_ratio(*arguments, level).exp()
    above = 1.5 if correction == "truncate" else 0.0
    expected = torch.where(ratio <= 1.5, ratio, above)
    assert close(found, torch.where(batch["mask"], expected, 0.0))
    same = correction_weights(batch["log_probs"], batch["log_probs"], batch["mask"], correction, level)
    assert torch.equal(same, batch["mask"].to(same.dtype))


def test_huge_ratios_stay_finite_and_weights_have_no_gradient() -> None:
    """exp(1000) is inf; a mask makes it 0, not nan."""
    log_probs = torch.tensor([[1000.0, 0.0]], requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    for correction, expected in (("truncate", [2.0, 1.0]), ("mask", [0.0, 1.0])):
        found = correction_weights(log_probs, torch.zeros(1, 2), mask, correction, "token")  # type: ignore[arg-type]
        assert found.tolist() == [expected] and not found.requires_grad
