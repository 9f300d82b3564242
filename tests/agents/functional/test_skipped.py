"""Pure functions with completions that are skipped give what they give without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agents.functional import (
    batch_mean,
    clipped_surrogate_loss,
    explained_variance,
    gae,
    group_relative,
    in_groups,
    leave_one_out,
    masked_mean,
    masked_whiten,
    mean_over_completions,
    policy_gradient_loss,
    value_loss,
)
from tests.helpers.batches import properties

GARBAGE = st.sampled_from([0.0, 1e6, torch.nan, torch.inf])


@st.composite
def groups(draw: Any) -> tuple[Tensor, Tensor, int]:
    """Returns [N], which of them are valid, and K; garbage where they are not."""
    size, number = draw(st.integers(2, 9)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    valid = torch.tensor(draw(st.lists(st.booleans(), min_size=size * number, max_size=size * number)))
    returns = torch.randn(size * number, generator=generator, dtype=torch.float64)
    return torch.where(valid, returns, draw(GARBAGE)), valid, size


@properties
@given(groups())
def test_a_group_is_compared_without_those_that_are_skipped(batch: tuple[Tensor, Tensor, int]) -> None:
    """Baselines and advantages of each group are those of its valid returns alone; 0 for the others."""
    returns, valid, size = batch
    baselines = leave_one_out(returns, size, valid)
    scaled, centred = (group_relative(returns, size, scale, valid=valid) for scale in (True, False))
    kept = in_groups(valid, size)
    for start in range(0, len(returns), size):
        rows = torch.arange(start, start + size)[valid[start : start + size]]
        assert kept[rows].all() if len(rows) >= 2 else not kept[start : start + size].any()
        if len(rows) >= 2:
            own = returns[rows]
            torch.testing.assert_close(baselines[rows], leave_one_out(own, len(rows)))
            torch.testing.assert_close(scaled[rows], group_relative(own, len(rows)))
            torch.testing.assert_close(centred[rows], group_relative(own, len(rows), scale=False))
    others = ~kept
    assert not baselines[others].any() and not scaled[others].any() and not centred[others].any()
    left = returns[valid]
    torch.testing.assert_close(
        batch_mean(returns, valid=valid)[0], left.mean() if len(left) else torch.zeros((), dtype=torch.float64)
    )


@properties
@given(groups())
def test_without_skips_the_results_are_the_same_to_the_bit(batch: tuple[Tensor, Tensor, int]) -> None:
    """With a mask that is all True, and the returns as a column of a matrix, as agents have them."""
    drawn, _, size = batch
    returns = torch.stack([torch.arange(len(drawn)).sin(), torch.zeros(len(drawn))], dim=1)[:, 0]
    everything, rows = torch.ones(len(returns), dtype=torch.bool), returns.view(-1, size)
    mean, std = rows.mean(dim=1, keepdim=True), rows.std(dim=1, keepdim=True)
    assert leave_one_out(returns, size, everything).equal(
        ((rows.sum(dim=1, keepdim=True) - rows) / (size - 1)).view(-1)
    )
    assert group_relative(returns, size, valid=everything).equal(((rows - mean) / (std + 1e-4)).view(-1))
    assert group_relative(returns, size, scale=False, valid=everything).equal((rows - mean).view(-1))


def test_a_zero_in_the_place_of_a_skipped_return_would_be_detected() -> None:
    """Control: it changes every baseline and advantage of the group."""
    returns, valid = torch.tensor([3.0, 5.0, 0.0, 7.0]), torch.tensor([True, True, False, True])
    assert leave_one_out(returns, 4, valid).tolist() == [6.0, 5.0, 0.0, 4.0]
    for function in (leave_one_out, group_relative):
        assert (function(returns, 4, valid=valid) != function(returns, 4))[valid].all()
    assert batch_mean(returns, valid=valid)[0] == 5.0 != batch_mean(returns)[0]


@st.composite
def tokens(draw: Any) -> dict[str, Any]:
    """Tensors [B, T] with some rows that are skipped, and the same without these rows."""
    rows, columns = draw(st.integers(2, 6)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    lengths = torch.tensor(draw(st.lists(st.integers(0, columns), min_size=rows, max_size=rows)))
    mask = torch.arange(columns) < lengths[:, None]
    names = ("x", "log_probs", "old_log_probs", "advantages", "values", "old_values", "returns")
    batch = {name: torch.randn(rows, columns, generator=generator, dtype=torch.float64) for name in names}
    return batch | {"mask": mask}


FUNCTIONS: dict[str, Any] = {
    "mean_over_completions": lambda b: mean_over_completions(b["x"], b["mask"]),
    "policy_gradient_loss": lambda b: policy_gradient_loss(b["log_probs"], b["advantages"], b["mask"]),
    "clipped_surrogate_loss": lambda b: clipped_surrogate_loss(
        b["log_probs"], b["old_log_probs"], b["advantages"], b["mask"], 0.2, 0.3
    ),
    "value_loss": lambda b: value_loss(b["values"], b["returns"], b["mask"], b["old_values"], 0.2),
    "masked_mean": lambda b: masked_mean(b["x"], b["mask"]),
    "masked_whiten": lambda b: masked_whiten(b["x"], b["mask"])[b["mask"]],
    "gae": lambda b: gae(b["x"], b["values"], b["mask"], 0.9, 0.8)[b["mask"]],
    "explained_variance": lambda b: explained_variance(b["values"], b["returns"], b["mask"]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@properties
@given(batch=tokens())
def test_a_row_without_tokens_does_not_count(name: str, batch: dict[str, Any]) -> None:
    """Losses and statistics, and their gradients, are those of the batch without such rows."""
    valid = batch["mask"].any(dim=1)
    leaves = {key: x.clone().requires_grad_() if key != "mask" else x for key, x in batch.items()}
    shorter = {key: x[valid] for key, x in leaves.items()}
    if not valid.any():
        loss = FUNCTIONS["mean_over_completions"](leaves)
        assert loss == 0.0
        return
    found, expected = FUNCTIONS[name](leaves), FUNCTIONS[name](shorter)
    torch.testing.assert_close(found, expected, equal_nan=True)
    if name.endswith("loss"):
        found, expected = (each[0] if isinstance(each, tuple) else each for each in (found, expected))
        leaf = leaves["values" if name == "value_loss" else "log_probs"]
        (gradient,), (wanted,) = (torch.autograd.grad(each, leaf, retain_graph=True) for each in (found, expected))
        torch.testing.assert_close(gradient, wanted)
        if not valid.all() and wanted.any():  # control: over all rows the mean is another
            assert not torch.allclose(valid.sum() / len(valid) * gradient, wanted)
