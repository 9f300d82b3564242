"""Random [B, T] batches for the tests of agents/functional."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

Batch = dict[str, Any]
properties = settings(max_examples=40, deadline=None)


@st.composite
def batches(draw: Any, max_rows: int = 4, max_tokens: int = 6) -> Batch:
    """Completions of 1 .. T tokens, in float64: rewards, values, two sets of log-probabilities, and the mask."""
    rows, tokens = draw(st.integers(1, max_rows)), draw(st.integers(1, max_tokens))
    lengths = draw(st.lists(st.integers(1, tokens), min_size=rows, max_size=rows))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names = ("rewards", "values", "log_probs", "old_log_probs")
    batch: Batch = {name: torch.as_tensor(rng.normal(size=(rows, tokens))) for name in names}
    batch["mask"] = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    return batch


def padded(batch: Batch, columns: int, seed: int) -> Batch:
    """The same completions with garbage after their ends, and in `columns` more columns on the right."""
    rng = np.random.default_rng(seed)
    longer: Batch = {"mask": torch.nn.functional.pad(batch["mask"], (0, columns))}
    for name in batch.keys() - {"mask"}:
        real = torch.nn.functional.pad(batch[name], (0, columns))
        longer[name] = torch.where(longer["mask"], real, torch.as_tensor(rng.normal(scale=100.0, size=real.shape)))
    return longer


def close(a: Tensor, b: Tensor) -> bool:
    """Equal up to float64 rounding."""
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9)
