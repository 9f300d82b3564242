"""Global generators, seeded for a while. On another device than the CPU: tests/standin/test_random_state.py."""

from __future__ import annotations

import pytest
import torch

from textenv.lm import forked_random_state, get_random_state, set_random_state

CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", [None, 3])
def test_the_state_is_restored(seed: int | None) -> None:
    """Also after an error. Control: outside, what is drawn changes it."""
    before = get_random_state(CPU)
    with forked_random_state(CPU, seed):
        found = torch.rand(3)
    assert torch.equal(get_random_state(CPU), before)
    with pytest.raises(ZeroDivisionError), forked_random_state(CPU, seed):
        print(torch.rand(3) / (1 // 0))
    assert torch.equal(get_random_state(CPU), before)
    expected = torch.rand(3) if seed is None else torch.rand(3, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(found, expected)
    torch.rand(3)
    assert not torch.equal(get_random_state(CPU), before)  # control
    set_random_state(before, CPU)
    assert torch.equal(get_random_state(CPU), before)
