"""Devices that compute while Python goes on: to read a number from one, the host waits for all kernels before it."""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor


def is_accelerator(device: torch.device) -> bool:
    """Whether the host must wait to read from a device, and each kernel is launched: any device but the CPU."""
    return device.type != "cpu"


def to_device(values: ArrayLike | Tensor, device: torch.device) -> Tensor:
    """Copies values from the host to a device. The host does not wait for it, but on MPS."""
    tensor = torch.as_tensor(values)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # a copy from other memory waits
    return tensor.to(device, non_blocking=device.type != "mps")  # there the memory might be freed before it is read
