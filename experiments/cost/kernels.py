"""Work: the operations of a call, counted without the device and without memory for tensors.

A `TorchDispatchMode` sees each operation that is dispatched, in the backward pass too. `fake_tensors` makes tensors
that have a shape and no numbers, so that a call on a model of any size can be counted. Where the host reads a number
of such a tensor (`.item()`, `if tensor.all()`), it gets a made-up one: true, 1.0, or a large integer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

LARGE_NUMBER = 2**31  # a made-up integer: as a width or a number of rows it is "all of them"
aten = torch.ops.aten
LOOK_UPS = (aten.embedding, aten.gather, aten.index, aten.index_select, aten.searchsorted)  # read few of the numbers


class Operation(NamedTuple):
    """One operation: a kernel, or a view, which only the host works on.

    Attributes:
        kind: what its arithmetic is; elementwise operations, copies and reductions are bound by memory.
        bytes: of all tensors that it reads and writes; 0 of a view.
        flops: of a product, forward or backward; 0 of any other operation.
        parts: the products that it consists of: a batch of matrices, the heads of all rows.
    """

    kind: Literal["view", "memory", "product", "attention"]
    bytes: int = 0
    flops: int = 0
    parts: int = 1


class Work:
    """Operations with their numbers, and the times that the host waits for the device. Sums and multiples are work."""

    def __init__(self, operations: Mapping[Operation, float] | None = None, waits: float = 0.0) -> None:
        self.operations: dict[Operation, float] = defaultdict(float, operations or {})
        self.waits = waits

    def __add__(self, other: Work) -> Work:
        return self.plus(other, 1.0)

    def __sub__(self, other: Work) -> Work:
        return self.plus(other, -1.0)

    def __mul__(self, factor: float) -> Work:
        return Work().plus(self, factor)

    def plus(self, other: Work, factor: float) -> Work:
        """This work and `factor` times the other."""
        total = Work(self.operations, self.waits + factor * other.waits)
        for operation, number in other.operations.items():
            total.operations[operation] += number * factor
        return total

    @property
    def kernels(self) -> float:
        """Number of operations that the device works on."""
        return sum(number for operation, number in self.operations.items() if operation.kind != "view")

    @property
    def dispatches(self) -> float:
        """Number of operations that the host launches: kernels and views."""
        return sum(self.operations.values())

    def total(self, quantity: Literal["bytes", "flops"]) -> float:
        """Bytes or floating point operations of all of it."""
        return float(sum(number * getattr(each, quantity) for each, number in self.operations.items()))


class WorkCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds each operation that is dispatched to `work`; with `made_up` it answers for tensors without numbers."""

    def __init__(self, made_up: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work, self.made_up = Work(), made_up

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "aten":
            return func(*args, **kwargs)
        packet = func._overloadpacket
        if packet is aten._local_scalar_dense:
            self.work.waits += 1
            if self.made_up:
                return made_up_number(args[0])
        if packet is aten.unique_dim and self.made_up:
            rows = args[0]
            return rows.clone(), torch.arange(len(rows)), torch.ones(len(rows), dtype=torch.long)
        with self:  # in inference mode operations arrive whole
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        out = func(*args, **kwargs)
        self.work.operations[operation(func, args, kwargs, out)] += 1
        return out


def operation(func: Any, args: Any, kwargs: Any, out: Any) -> Operation:
    """What one call of an ATen operation does."""
    packet = func._overloadpacket
    aliases = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
    if aliases or packet is aten._unsafe_view:
        return Operation("view")
    tensors = {id(x): x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)}
    size = sum(touched_bytes(x) for x in tensors.values())
    if "attention" in packet.__name__:
        return attention(packet.__name__, args, size)
    if packet in flop_registry:
        parts = len(args[0]) if packet is aten.bmm else 1
        return Operation("product", size, flop_registry[packet](*args, **kwargs, out_val=out), parts)
    if packet in LOOK_UPS:
        size = 2 * sum(touched_bytes(x) for x in tree_leaves(out))
    return Operation("memory", size)


def touched_bytes(tensor: Tensor) -> int:
    """Bytes of the numbers of a tensor; a dimension that is only expanded counts once."""
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        size *= length if stride else min(length, 1)
    return size


def attention(name: str, args: Any, size: int) -> Operation:
    """Scaled dot product attention of all heads: two products forward, five backward, as in flash attention."""
    query, key = args[1:3] if "backward" in name else args[:2]
    *heads, queries, width = query.shape
    parts = prod(heads)
    flops = 2 * parts * queries * key.shape[-2] * width * (5 if "backward" in name else 2)
    return Operation("attention", size, flops, parts)


def made_up_number(tensor: Tensor) -> float:
    """What the host reads from a tensor without numbers."""
    return True if tensor.dtype == torch.bool else 1.0 if tensor.dtype.is_floating_point else LARGE_NUMBER


@contextmanager
def fake_tensors() -> Iterator[WorkCounter]:
    """Counts the operations of the block, on tensors without numbers, which only exist there."""
    with FakeTensorMode(allow_non_fake_inputs=True), WorkCounter(made_up=True) as counter:
        yield counter
