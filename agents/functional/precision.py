"""Sums of float32 in float64, on devices that have it: MPS has not."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


@cache
def widest_float(device: torch.device) -> torch.dtype:
    """The most precise dtype of a device: float64, or float32 where there is none."""
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except TypeError:
        return torch.float32
    return torch.float64


def widen(tensor: Tensor) -> Tensor:
    """Converts a tensor of any dtype to `widest_float` of its device."""
    return tensor.to(widest_float(tensor.device))
