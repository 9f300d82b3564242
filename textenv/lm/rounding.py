"""How far rounding may bring two computations of the same logits apart."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 8  # rounding steps of the logits' own size


def precision(dtype: torch.dtype) -> float:
    """The relative precision of what a model computes in `dtype`; some parts compute in float32 always."""
    return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


def rounding_tolerance(logits: Tensor, dtype: torch.dtype, spread: float | None = None) -> float:
    """The largest difference that rounding explains: sqrt(eps) of the logits' spread, and 8 eps of their size.

    Args:
        logits: of any shape.
        dtype: in which the model computes.
        spread: by default the difference of the largest and the smallest logit.
    """
    if spread is None:
        spread = float(logits.max() - logits.min())
    eps = precision(dtype)
    return float(eps**0.5 * spread + STEPS * eps * float(logits.abs().max()))
