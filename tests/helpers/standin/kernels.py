"""Runs every operator of the device: the CPU's kernel on the memory that the tensors stand for."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.helpers.standin import generator as generators
from tests.helpers.standin.counts import count_kernel, count_upload, count_wait
from tests.helpers.standin.memory import (
    CPU_KERNELS,
    HOST,
    assign,
    device_tensor,
    device_view,
    host_tensor,
    is_device,
    on_device,
)
from tests.helpers.standin.rules import NUMBERS, check_devices, check_dtype, check_generator
from tests.helpers.standin.waits import INDEXING, boolean_indices, num_waits

aten = torch.ops.aten
ALLOCATIONS = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "resize_", "set_"}
NO_KERNEL = ALLOCATIONS | {"_local_scalar_dense", "is_set_to", "_efficientzerotensor", "_fused_sdp_choice"}


@dataclass(frozen=True)
class Traits:
    """What the schema of an operator declares."""

    name: str  # without its overload
    launches: bool  # whether it is a kernel, rather than a view or an allocation
    written: tuple[tuple[int, str], ...]  # position and name of the arguments that it writes
    generator: bool  # takes one
    random: bool  # draws without one
    takes_numbers: bool
    tensors: tuple[int, ...]  # positions of the arguments that are one tensor


@cache
def traits(operator: Any) -> Traits:
    """Returns what the schema of an operator declares."""
    schema = operator._schema
    name = schema.name.split("::")[1]
    takes_generator = any("Generator" in str(a.type) for a in schema.arguments)
    return Traits(
        name=name,
        launches=not operator.is_view and name not in NO_KERNEL,
        written=tuple((i, a.name) for i, a in enumerate(schema.arguments) if a.alias_info and a.alias_info.is_write),
        generator=takes_generator,
        random=torch.Tag.nondeterministic_seeded in operator.tags and not takes_generator,
        takes_numbers=torch.Tag.pointwise in operator.tags or name in NUMBERS or name.startswith("_foreach"),
        tensors=tuple(i for i, a in enumerate(schema.arguments) if str(a.type) == "Tensor"),
    )


class Call:
    """One call of an operator: its arguments on the host, and what its results belong to."""

    def __init__(self) -> None:
        self.host: list[Tensor] = []  # CPU tensors among the arguments
        self.aliases: list[Tensor] = []  # the CPU tensors that stand for tensors of the device
        self.originals: dict[int, Tensor] = {}  # those tensors, by the id of the alias
        self.bases: dict[int, Tensor] = {}  # and by the alias's storage

    def to_host(self, value: Any) -> Any:
        """An argument, with CPU tensors in place of those of the device."""
        if isinstance(value, Tensor):
            if not on_device(value):
                self.host.append(value)
                return value
            alias = host_tensor(value)
            self.aliases.append(alias)
            self.originals[id(alias)] = value
            self.bases[alias.untyped_storage()._cdata] = value
            return alias
        if isinstance(value, torch.Generator):
            check_generator(value)
        elif isinstance(value, torch.device):
            return HOST if is_device(value) else value
        elif isinstance(value, (list, tuple)):
            return [self.to_host(each) for each in value]
        return value

    def to_device(self, value: Any) -> Any:
        """A result, with tensors of the device in place of the CPU's."""
        if isinstance(value, Tensor):
            original = self.originals.get(id(value))
            if original is not None:
                return original
            check_dtype(value.dtype)
            base = self.bases.get(value.untyped_storage()._cdata)
            return device_tensor(value) if base is None else device_view(value, base)
        if isinstance(value, (list, tuple)):
            return type(value)(self.to_device(each) for each in value)
        return value

    def follow(self, alias: Tensor) -> None:
        """Gives a tensor of the device the shape and memory that the kernel gave to the CPU tensor in its place."""
        original = self.originals[id(alias)]
        storage = alias.untyped_storage()
        base = self.bases.get(storage._cdata)
        own = None if base is None else base.untyped_storage()
        if own is not None and own.nbytes() != storage.nbytes():
            own = None  # the kernel made the memory larger
        if own is None or _layout(alias) != _layout(original):
            assign(original, alias, own)


def run(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls an operator with tensors of the device."""
    with torch._C.DisableTorchFunction():  # modes of the caller, such as torch.device("meta"), are not for the kernel
        own = traits(operator)
        if own.name == "copy_":
            return copy(*args, **kwargs)
        if own.name == "_to_copy":
            return to_copy(operator, *args, **kwargs)
        if own.name == "_index_put_impl_" and (mask := mask_to_fill(*args)) is not None:
            return run(aten.masked_fill_.Tensor, args[0], mask, args[2].view(()))
        if own.name in INDEXING:
            args = indices_to_device(own.name, args)
        if own.name == "set_" and len(args) > 1:
            return operator.redispatch(CPU_KERNELS, *args, **kwargs)
        call = Call()
        host_args = [call.to_host(each) for each in args]
        host_kwargs = {name: call.to_host(each) for name, each in kwargs.items()}
        written = [each for i, name in own.written for each in _tensors(host_args, host_kwargs, i, name)]
        check_devices(own.name, written, call.host, own.takes_numbers)
        if own.generator and host_kwargs.get("generator") is None:
            host_kwargs["generator"] = generators.default
        if own.launches:
            count_kernel(own.name)
        count_wait(own.name, num_waits(own.name, args, kwargs))
        with generators.default_numbers() if own.random else nullcontext():
            found = _callee(operator, own, args)(*host_args, **host_kwargs)
        for alias in written:
            call.follow(alias)
        if "device" in kwargs and kwargs["device"] is not None and not is_device(kwargs["device"]):
            return found
        return call.to_device(found)


def copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """`target.copy_(source)`, where one or both are on the device."""
    here, there = on_device(target), on_device(source)
    if here and there:
        count_kernel("copy_")
    elif here:
        count_upload("copy_", non_blocking)
    else:
        count_wait("copy_")  # pageable memory: the call ends when the bytes are there, non_blocking or not
    if here != there and (target.dtype != source.dtype or not (target if here else source).is_contiguous()):
        count_kernel("copy_")  # the device converts, or packs, before or after the transfer
    (host_tensor(target) if here else target).copy_(host_tensor(source) if there else source)
    return target


def to_copy(operator: Any, tensor: Tensor, **options: Any) -> Tensor:
    """`tensor.to(...)`, whose `non_blocking` copies to the host go to pinned memory and do not wait."""
    place = options.get("device")
    if not (on_device(tensor) and place == HOST and options.get("non_blocking")):
        return operator.redispatch(CPU_KERNELS, tensor, **options)  # type: ignore[no-any-return]
    if options.get("dtype", tensor.dtype) != tensor.dtype:
        count_kernel("copy_")
    return operator(host_tensor(tensor), **options)  # type: ignore[no-any-return]


def mask_to_fill(
    tensor: Tensor, indices: Any, value: Tensor, accumulate: bool = False, unsafe: bool = False
) -> Tensor | None:
    """The mask of `x[mask] = number`, which CUDA runs as `masked_fill_`, without positions; None for others."""
    given = [i for i in indices if i is not None]
    if accumulate or on_device(value) or value.numel() != 1 or len(given) != 1:
        return None
    mask: Tensor = given[0]
    if not on_device(mask) or not boolean_indices(given):
        return None
    before = next(i for i, index in enumerate(indices) if index is not None)
    return mask[(..., *[None] * (tensor.dim() - before - mask.dim()))]


def indices_to_device(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Moves indices on the host to the device, as CUDA does, and counts what masks as indices cost."""
    moved = []
    for index in args[1]:
        if index is not None and not on_device(index):
            count_upload(name)
            index = device_tensor(index.clone())
        moved.append(index)
    for _ in boolean_indices(moved):
        count_kernel("nonzero")
    return (args[0], moved, *args[2:])


def _tensors(args: list[Any], kwargs: dict[str, Any], position: int, name: str) -> list[Tensor]:
    """The tensors of one argument: one, several or none."""
    value = args[position] if position < len(args) else kwargs.get(name)
    return [value] if isinstance(value, Tensor) else list(value) if isinstance(value, (list, tuple)) else []


def _callee(operator: Any, own: Traits, args: tuple[Any, ...]) -> Any:
    """The operator to call: another overload, where torch gives a number in place of a tensor that stands for one."""
    has_all = all(isinstance(args[i], Tensor) for i in own.tensors if i < len(args))
    return operator if has_all else operator.overloadpacket


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    """Where the numbers of a tensor are in its storage."""
    return tensor.shape, tensor.stride(), tensor.storage_offset()
