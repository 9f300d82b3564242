"""Kernels, waits and uploads are counted: what launches nothing is none, and what waits on CUDA is a wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.helpers.standin import DEVICE, Counts, counting

Work = Callable[[torch.Tensor], Any]


def counted(work: Work) -> Counts:
    """Counts of a function of the matrix 0, 1, ..., 11 [3, 4]."""
    x = torch.arange(12.0, device=DEVICE).reshape(3, 4)
    with counting() as counts:
        work(x)
    return counts


KERNELS: dict[str, tuple[Work, int]] = {
    "sum": (lambda x: x + 1, 1),
    "in place": (lambda x: x.mul_(2), 1),
    "with out": (lambda x: torch.add(x, x, out=torch.empty_like(x)), 1),
    "two": (lambda x: (x * 2).exp(), 2),
    "linear": (lambda x: torch.nn.functional.linear(x, x, x[:, 0]), 1),
    "softmax": (lambda x: x.log_softmax(1), 1),
    "layer norm": (lambda x: torch.nn.functional.layer_norm(x, (4,)), 1),
    "zeros": (lambda x: torch.zeros_like(x), 1),
    "range": (lambda x: torch.arange(3, device=x.device), 1),
    "copy": (lambda x: x.clone(), 1),
    "other dtype": (lambda x: x.int(), 1),
    "packed": (lambda x: x.T.contiguous(), 1),
    "many tensors at once": (lambda x: torch._foreach_add_([x, x.clone(), x.clone()], 1.0), 3),
    "random": (lambda x: torch.rand(3, device=x.device), 1),
}
NONE: dict[str, Work] = {
    "empty": lambda x: (torch.empty(3, device=x.device), torch.empty_like(x), x.new_empty(2)),
    "views": lambda x: (x[1:].T[:, :1].expand(-1, 2), x.view(12)[3], x.split(2, 1), x.unsqueeze(0).squeeze(0)),
    "metadata": lambda x: (x.shape, x.dtype, x.device, x.stride(), x.numel(), x.is_contiguous(), len(x)),
    "no copy": lambda x: (x.contiguous(), x.float(), x.to(x.device), x.detach()),
    "another device": lambda x: torch.ones(3).mul_(2),
    "a host copy": lambda x: x.cpu(),
}


@pytest.mark.parametrize("name", KERNELS)
def test_operators_that_compute_are_kernels(name: str) -> None:
    """Each call of one counts once; none of these waits."""
    work, number = KERNELS[name]
    counts = counted(work)
    assert (counts.kernels, counts.waits, counts.uploads) == (number, 0, 0), counts


@pytest.mark.parametrize("name", NONE)
def test_views_and_allocations_are_no_kernels(name: str) -> None:
    """They are made on the host, which knows shapes and strides."""
    assert counted(NONE[name]).kernels == 0


WAITS: dict[str, tuple[Work, int]] = {
    "item": (lambda x: x[0, 0].item(), 1),
    "float": (lambda x: float(x.sum()), 1),
    "truth": (lambda x: bool(x.any()), 1),
    "if": (lambda x: 1 if x[0, 1] > 0 else 2, 1),
    "list": (lambda x: x.tolist(), 1),
    "to the host": (lambda x: x.cpu(), 1),
    "copied to the host without blocking": (lambda x: torch.empty(3, 4).copy_(x, non_blocking=True), 1),
    "copied to the host": (lambda x: torch.empty(3, 4).copy_(x), 1),
    "equal": (lambda x: torch.equal(x, x), 1),
    "close": (lambda x: torch.allclose(x, x), 1),
    "nonzero": (lambda x: x.nonzero(), 1),
    "where": (lambda x: torch.where(x > 0), 1),
    "mask": (lambda x: x[x > 3], 1),
    "two masks": (lambda x: x[x[:, 0] > 0, x[1] > 5], 2),
    "set by a mask": (lambda x: x.__setitem__(x > 3, x[x > 3]), 2),
    "filled with a number of the device": (lambda x: x.masked_fill(x > 3, x[0, 0]), 1),
    "selection": (lambda x: x.masked_select(x > 3), 1),
    "unique": (lambda x: x.unique(), 1),
    "unique rows": (lambda x: x.unique(dim=0), 1),
    "repeated": (lambda x: x.repeat_interleave(x[:, 1].long(), dim=0), 1),
    "counted": (lambda x: torch.bincount(x[0].long()), 1),
    "synchronize": (lambda x: torch.get_device_module(x.device).synchronize(), 1),
    "multinomial": (lambda x: torch.multinomial(x + 1, 1), 2),
}
NO_WAITS: dict[str, Work] = {
    "sum": lambda x: x.sum(),
    "positions": lambda x: x[torch.arange(2, device=x.device)],
    "set by a mask to a number": lambda x: x.__setitem__(x > 3, 0.0),
    "set by a mask to a number of the host": lambda x: x.__setitem__(x > 3, torch.tensor(0.0)),
    "rows set by a mask to a number": lambda x: x.__setitem__(x[:, 0] > 3, 0.0),
    "a row set to a number": lambda x: x.__setitem__(1, 0.0),
    "to the host without blocking": lambda x: x.to("cpu", non_blocking=True),  # torch copies to pinned memory
    "filled by a mask": lambda x: x.masked_fill(x > 3, 0.0),
    "filled with a number of the host": lambda x: x.masked_fill(x > 3, torch.tensor(2.0)),
    "chosen": lambda x: torch.where(x > 3, x, 0.0),
    "repeated to a known size": lambda x: x.repeat_interleave(x[:, 1].long(), dim=0, output_size=15),
    "repeated alike": lambda x: x.repeat_interleave(2, dim=0),
    "sorted": lambda x: x.sort(),
    "of the host": lambda x: torch.ones(3).nonzero().tolist(),
    "gradient": lambda x: torch.autograd.grad((y := x.clone().requires_grad_()).square().sum(), y),
}


@pytest.mark.parametrize("name", WAITS)
def test_what_needs_a_result_of_the_device_waits(name: str) -> None:
    """Copies to the host, and results whose size the host must know."""
    work, number = WAITS[name]
    counts = counted(work)
    assert (counts.waits, counts.uploads) == (number, 0), counts
    assert [line.split(":")[0] for line in counts.wait_lines.elements()] == ["tests/standin/test_counts.py"] * number


@pytest.mark.parametrize("name", NO_WAITS)
def test_what_the_device_can_do_alone_waits_for_nothing(name: str) -> None:
    """Control of the waits."""
    counts = counted(NO_WAITS[name])
    assert counts.waits == counts.uploads == 0, counts


UPLOADS: dict[str, tuple[Work, int, int]] = {
    "tensor": (lambda x: torch.tensor([1, 2], device=x.device), 1, 0),
    "moved": (lambda x: torch.ones(3).to(x.device), 1, 0),
    "copied": (lambda x: x.copy_(torch.ones(3, 4)), 1, 0),
    "without blocking": (lambda x: torch.ones(3).to(x.device, non_blocking=True), 0, 1),
    "positions": (lambda x: x[torch.tensor([0, 1])], 1, 0),
    "number": (lambda x: x + torch.tensor(2.0), 0, 0),
    "filled": (lambda x: torch.full((2,), 3.0, device=x.device), 0, 0),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_copies_to_the_device_are_counted_apart(name: str) -> None:
    """Those that do not block too. A number is an argument of its kernel."""
    work, blocking, others = UPLOADS[name]
    counts = counted(work)
    assert (counts.uploads, counts.async_uploads, counts.waits) == (blocking, others, 0), counts


def test_counting_ends_and_nests() -> None:
    """What happens outside is not counted; what happens in the inner one is counted in both."""
    x = torch.ones(2, device=DEVICE)
    with counting() as outer:
        x.exp()
        with counting() as inner:
            x.exp()
    x.exp()
    assert (outer.by_kernel, inner.by_kernel) == ({"exp": 2}, {"exp": 1})


def test_the_backward_pass_is_counted() -> None:
    """It runs on another thread."""
    x = torch.ones(2, device=DEVICE, requires_grad=True)
    loss = x.exp().sum()
    with counting() as counts:
        loss.backward()
    assert counts.by_kernel["mul"] == 1
