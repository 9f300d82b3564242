"""Means over the real tokens: pure functions of tensors and a mask of the same shape, True on the sampled tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]  # sums a tensor over the ranks (`all_reduce_sum` in agents/training/ranks.py)


def local_total(x: Tensor) -> Tensor:
    """The sum over one rank: x itself."""
    return x


def masked_mean(x: Tensor, mask: Tensor, total: Total = local_total) -> Tensor:
    """Mean of `x` over the True entries of `mask`: the divisor is `mask.sum()`, never B * T."""
    check_shapes(mask, x=x)
    return total(torch.where(mask, x, 0.0).sum()) / total(mask.sum()).clamp(min=1)


def mean_over_completions(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of `x` over the True entries of `mask` [B, T], divided by the number of rows that have one; 0 if none has."""
    check_shapes(mask, x=x)
    return torch.where(mask, x, 0.0).sum() / mask.any(dim=1).sum().clamp(min=1)


def check_shapes(mask: Tensor, **tensors: Tensor) -> None:
    """Raises a ValueError unless the mask is bool and all tensors have its shape: nothing broadcasts in silence."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be a bool mask, got {mask.dtype}.")
    for name, x in tensors.items():
        if x.shape != mask.shape:
            raise ValueError(f"{name} must have the shape of the bool mask, {tuple(mask.shape)}, got {tuple(x.shape)}.")
