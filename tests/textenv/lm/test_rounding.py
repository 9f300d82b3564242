"""rounding_tolerance: what two dtypes of one computation differ by is tolerated, a wrong number is not."""

from __future__ import annotations

import pytest
import torch

from textenv.lm import rounding_tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_rounding_is_tolerated_and_a_fault_is_not(dtype: torch.dtype, offset: float) -> None:
    """Logits rounded to `dtype`, also where they are large beside their spread; a shift by half the spread is seen."""
    logits = torch.randn(8, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + offset
    spread = float(logits.max() - logits.min())
    tolerance = rounding_tolerance(logits, dtype)
    assert float((logits.to(dtype).double() - logits).abs().max()) <= tolerance
    if offset == 0.0:
        assert tolerance < spread / 2
    assert rounding_tolerance(logits, dtype, spread=2 * spread) > tolerance


def test_double_precision_is_judged_as_single() -> None:
    """Parts of a model compute in float32 whatever its dtype is."""
    logits = torch.tensor([0.0, 1.0, -3.0])
    assert rounding_tolerance(logits, torch.float64) == rounding_tolerance(logits, torch.float32) > 0
