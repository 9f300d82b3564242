"""The device refuses what CUDA refuses, in CUDA's words, and on request what MPS lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.standin import DEVICE, without_float64

HERE, THERE = "cpu", DEVICE


def ones(device: str, *shape: int) -> torch.Tensor:
    """Ones of a shape, [2, 2] by default."""
    return torch.ones(shape or (2, 2), device=device)


# Each with the device of one of its tensors: the other ones are on the device.
MIXED: dict[str, Callable[[str], Any]] = {
    "sum": lambda d: ones(THERE) + ones(d),
    "product in place": lambda d: ones(THERE).mul_(ones(d)),
    "matrix product": lambda d: ones(d) @ ones(THERE),
    "concatenation": lambda d: torch.cat([ones(THERE), ones(d)]),
    "stack": lambda d: torch.stack([ones(d), ones(THERE)]),
    "choice": lambda d: torch.where(ones(d) > 0, ones(THERE), ones(THERE)),
    "mask": lambda d: ones(THERE).masked_fill(ones(d) > 0, 1.0),
    "gather": lambda d: ones(THERE).gather(1, ones(d).long()),
    "selection": lambda d: ones(THERE).index_select(0, ones(d, 2).long()),
    "embedding": lambda d: torch.nn.functional.embedding(ones(d).long(), ones(THERE)),
    "linear layer": lambda d: torch.nn.Linear(2, 2).to(THERE)(ones(d)),
    "targets": lambda d: torch.nn.functional.cross_entropy(ones(THERE), ones(d, 2).long()),
    "search": lambda d: torch.searchsorted(ones(THERE), ones(d)),
    "result": lambda d: torch.add(ones(THERE), ones(THERE), out=ones(d)),
    "written": lambda d: ones(d).add_(ones(THERE)),
    "written number": lambda d: torch.tensor(1.0, device=d).add_(torch.tensor(1.0, device=THERE)),
    "indexed": lambda d: ones(d)[torch.tensor([0], device=THERE)],
    "set": lambda d: ones(THERE).__setitem__(torch.tensor([0, 1], device=THERE), ones(d)),
    "lists": lambda d: torch._foreach_add([ones(THERE)], [ones(d)]),
    "number as a position": lambda d: ones(THERE).index_select(0, torch.tensor(1, device=d)),
}


@pytest.mark.parametrize("name", MIXED)
def test_devices_are_not_mixed(name: str) -> None:
    """Control: the same call with all tensors on the device."""
    with pytest.raises(RuntimeError, match=r"same device|on the same device|either on cpu"):
        MIXED[name](HERE)
    MIXED[name](THERE)


ALLOWED: dict[str, Callable[[], torch.Tensor]] = {
    "a number": lambda: ones(THERE) + torch.tensor(2.0),
    "a number before": lambda: torch.tensor(2.0) * ones(THERE),
    "a number in place": lambda: ones(THERE).div_(torch.tensor(2.0)),
    "to fill with": lambda: ones(THERE).masked_fill(ones(THERE) > 0, torch.tensor(2.0)),
    "in a choice": lambda: torch.where(ones(THERE) > 0, torch.tensor(2.0), ones(THERE)),
    "positions": lambda: ones(THERE)[torch.tensor([0, 1])],
    "a mask as index": lambda: ones(THERE)[torch.tensor([True, False])],
    "copied": lambda: ones(THERE).copy_(ones(HERE)),
    "of arrays": lambda: ones(THERE) * np.float32(2),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_numbers_and_indices_may_be_on_the_cpu(name: str) -> None:
    """As on CUDA: a CPU tensor of no dimensions is read as a number, and indices are moved."""
    assert ALLOWED[name]().device.type == DEVICE


def test_numpy_does_not_read_its_memory() -> None:
    """Neither by `numpy` nor through the array interface."""
    for read in (lambda x: x.numpy(), np.asarray, lambda x: np.concatenate([np.ones(4), x])):
        with pytest.raises(TypeError, match="can't convert standin:0 device type tensor to numpy"):
            read(ones(THERE, 4))
        read(ones(HERE, 4))  # control


def generator(device: str) -> torch.Generator:
    """A generator with a seed."""
    return torch.Generator(device).manual_seed(3)


DRAWS: dict[str, Callable[[str, torch.Generator], Any]] = {
    "rand": lambda d, g: torch.rand(3, generator=g, device=d),
    "randn": lambda d, g: torch.randn(3, generator=g, device=d),
    "randint": lambda d, g: torch.randint(9, (3,), generator=g, device=d),
    "randperm": lambda d, g: torch.randperm(9, generator=g, device=d),
    "normal": lambda d, g: torch.normal(ones(d), ones(d), generator=g),
    "bernoulli": lambda d, g: torch.bernoulli(ones(d) / 2, generator=g),
    "multinomial": lambda d, g: torch.multinomial(ones(d), 1, generator=g),
    "uniform_": lambda d, g: ones(d).uniform_(generator=g),
    "exponential_": lambda d, g: ones(d).exponential_(generator=g),
    "normal_": lambda d, g: ones(d).normal_(generator=g),
    "multinomial of a tensor": lambda d, g: ones(d).multinomial(1, generator=g),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_generator_draws_on_its_own_device(name: str) -> None:
    """Control: where it draws, it draws what the CPU draws with its seed."""
    draw = DRAWS[name]
    for device, other in ((HERE, THERE), (THERE, HERE)):
        with pytest.raises(RuntimeError, match=f"Expected a '{device}' device type for generator but found '{other}'"):
            draw(device, generator(other))
    assert torch.equal(draw(THERE, generator(THERE)).cpu(), draw(HERE, generator(HERE)))


def test_float64_may_be_missing() -> None:
    """As on MPS: it is made by no operator, and not copied there. Control: float32 is, and float64 outside."""
    double = [
        lambda: torch.zeros(2, dtype=torch.float64, device=THERE),
        lambda: ones(THERE).double(),
        lambda: torch.ones(2, dtype=torch.float64).to(THERE),
        lambda: torch.tensor([1.0], dtype=torch.float64, device=THERE),
        lambda: torch.as_tensor(np.ones(2), device=THERE),
        lambda: ones(THERE).sum(dtype=torch.float64),
        lambda: torch.nn.Linear(2, 2).double().to(THERE),
    ]
    for make in double:
        with without_float64(), pytest.raises(TypeError, match="float64"):
            make()
        make()
    with without_float64():
        assert float(ones(THERE).float().sum()) == 4.0
        assert ones(THERE).cpu().double().dtype == torch.float64  # on the CPU
