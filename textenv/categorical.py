"""Categorical distributions over the tokens that a mask allows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from textenv.state import Array


def masked_log_softmax(logits: Array, mask: NDArray[np.bool_] | np.bool_) -> NDArray[np.float64]:
    """log softmax over the last axis, restricted to where `mask` is True; -inf elsewhere."""
    allowed = np.where(mask, logits, -np.inf)
    shifted = allowed - allowed.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def logsumexp(x: Array) -> Array:
    """log sum_i exp(x_i) over the last axis."""
    top = x.max(axis=-1, keepdims=True)
    total: Array = top[..., 0] + np.log(np.exp(x - top).sum(axis=-1))
    return total
