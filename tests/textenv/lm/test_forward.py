"""The forward pass of a causal language model: its fused activation."""

from __future__ import annotations

import torch
from transformers.activations import NewGELUActivation

from textenv.lm.forward import FusedGELU


def test_the_fused_activation_is_the_same_function() -> None:
    """With its gradient: up to rounding in single precision, bit-identical values in double precision."""
    x = torch.linspace(-6, 6, 1001)
    for dtype, close in ((torch.float32, 1e-6), (torch.float64, 0.0)):
        values, slopes = [], []
        for activation in (NewGELUActivation(), FusedGELU()):
            point = x.to(dtype).requires_grad_()
            values.append(activation(point))
            slopes.append(torch.autograd.grad(values[-1].sum(), point)[0])
        assert float((values[0] - values[1]).abs().max()) <= close
        assert float((slopes[0] - slopes[1]).abs().max()) <= 10 * close
