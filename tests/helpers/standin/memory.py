"""Tensors of the device, and the host's memory that they stand for.

A tensor of the device is a plain `torch.Tensor` whose storage claims to be on the device. The storage has an attribute
`host`: the CPU storage with the bytes. Whatever reads or writes a tensor of the device does it through a CPU tensor on
`host` with the same shape and strides, `host_tensor`. `device_tensor` does the reverse with a CPU tensor that was just
computed: nothing is copied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TYPE = "standin"
HOST = torch.device("cpu")
CPU_KERNELS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_as_strided = torch.ops.aten.as_strided.default
_set = torch.ops.aten.set_.source_Storage_storage_offset


def is_device(value: object) -> bool:
    """Whether it names the device."""
    if isinstance(value, str):
        return value.split(":")[0] == TYPE
    return isinstance(value, torch.device) and value.type == TYPE


def on_device(value: object) -> bool:
    """Whether it is a tensor of the device."""
    return isinstance(value, Tensor) and value.device.type == TYPE


def device_storage(host: torch.UntypedStorage) -> torch.UntypedStorage:
    """Returns a storage of the device for the bytes of a CPU storage."""
    storage = torch._C._construct_storage_from_data_pointer(host.data_ptr(), torch.device(TYPE, 0), host.nbytes())
    storage.host = host
    return storage  # type: ignore[no-any-return]


def host_tensor(tensor: Tensor) -> Tensor:
    """Returns the CPU tensor with the memory, shape and strides of a tensor of the device."""
    storage: Any = tensor.untyped_storage()
    host = getattr(storage, "host", None)
    if host is None:  # torch made this storage in C++ from the address of another one
        host = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), HOST, storage.nbytes())
    view = torch.empty((0,), dtype=tensor.dtype, device=HOST)
    return view.set_(host, tensor.storage_offset(), tensor.size(), tensor.stride())


def device_tensor(tensor: Tensor) -> Tensor:
    """Returns the tensor of the device with the memory, shape and strides of a new CPU tensor."""
    return assign(torch._C._acc.create_empty_tensor([0], tensor.dtype), tensor)


def device_view(tensor: Tensor, base: Tensor) -> Tensor:
    """Returns the view of a tensor of the device that a CPU tensor is of its memory.

    Outside inference mode and within, torch's own kernel makes a view of the same kind as its base.
    """
    if tensor.dtype != base.dtype:
        return assign(torch._C._acc.create_empty_tensor([0], tensor.dtype), tensor, base.untyped_storage())
    return _as_strided.redispatch(  # type: ignore[no-any-return]
        CPU_KERNELS, base, tensor.size(), tensor.stride(), tensor.storage_offset()
    )


def assign(target: Tensor, tensor: Tensor, storage: torch.UntypedStorage | None = None) -> Tensor:
    """Gives a tensor of the device the memory, shape and strides of a CPU tensor."""
    if storage is None:
        storage = device_storage(tensor.untyped_storage())
    # the CPU's kernel sets the numbers of any tensor whose storage is on its device
    _set.redispatch(CPU_KERNELS, target, storage, tensor.storage_offset(), tensor.size(), tensor.stride())
    return target
