"""Baselines against their definitions, computed entry by entry."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.functional import batch_mean, group_relative, leave_one_out
from tests.helpers.batches import properties


@properties
@given(st.integers(1, 4), st.integers(2, 5), st.integers(0, 99))
def test_leave_one_out_is_the_mean_of_the_others(prompts: int, copies: int, seed: int) -> None:
    """Each completion's baseline is the mean return of the others in its group, computed by a loop."""
    returns = torch.as_tensor(np.random.default_rng(seed).normal(size=prompts * copies))
    found = leave_one_out(returns, copies)
    for i in range(len(returns)):
        group = i // copies
        others = [float(returns[j]) for j in range(group * copies, (group + 1) * copies) if j != i]
        assert found[i] == pytest.approx(sum(others) / len(others))


def test_a_return_does_not_change_its_own_baseline() -> None:
    """Leave-one-out ignores the completion itself; the batch mean (the control) does not."""
    returns = torch.tensor([1.0, 2.0, 3.0, 4.0])
    other = returns.clone()
    other[0] += 10.0
    assert leave_one_out(returns, 2)[0] == leave_one_out(other, 2)[0]
    assert leave_one_out(returns, 2)[1] != leave_one_out(other, 2)[1]
    assert leave_one_out(returns, 2)[2:].equal(leave_one_out(other, 2)[2:])
    assert batch_mean(returns)[0] != batch_mean(other)[0]
    assert batch_mean(returns).tolist() == [2.5] * 4


@properties
@given(prompts=st.integers(1, 4), copies=st.integers(2, 5), seed=st.integers(0, 99), scale=st.booleans())
def test_group_relative_depends_only_on_the_group(prompts: int, copies: int, seed: int, scale: bool) -> None:
    """Mean 0 in each group; with the scale standard deviation 1, invariant to a shift and a change of unit."""
    returns = torch.randn(prompts * copies, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = group_relative(returns, copies, scale, epsilon=0.0).view(prompts, copies)
    assert torch.allclose(found.mean(dim=1), torch.zeros(prompts, dtype=torch.float64), atol=1e-9)
    if scale:
        assert torch.allclose(found.std(dim=1), torch.ones(prompts, dtype=torch.float64))
    units = torch.arange(1, prompts + 1, dtype=torch.float64)
    changed = ((returns.view(prompts, copies) + 7.0) * units[:, None]).view(-1)
    again = group_relative(changed, copies, scale, epsilon=0.0).view(prompts, copies)
    assert torch.allclose(again, found if scale else found * units[:, None])
    assert group_relative(torch.ones(4), 2, scale).eq(0).all()  # equal returns: no advantage


@pytest.mark.parametrize(("count", "copies"), [(4, 1), (5, 2)])
def test_group_relative_needs_whole_groups(count: int, copies: int) -> None:
    """A single completion per prompt, or an incomplete group, is an error."""
    with pytest.raises(ValueError, match=rf"group_relative needs .* got {copies} for {count} returns"):
        group_relative(torch.zeros(count), copies)


@pytest.mark.parametrize(("count", "copies"), [(4, 1), (4, 0), (4, 3), (2, 4)])
def test_leave_one_out_needs_whole_groups(count: int, copies: int) -> None:
    """A single completion per prompt, or an incomplete group, is an error."""
    with pytest.raises(ValueError, match="num_generations >= 2"):
        leave_one_out(torch.zeros(count), copies)
