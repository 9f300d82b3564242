"""The value head: V(s) = w . h(s) + b."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ValueHead(nn.Linear):
    """One linear layer on last hidden states h, in float32. V is 0 everywhere at first.

    Args:
        hidden_size: H.
        device: the device of w and b.
    """

    def __init__(self, hidden_size: int, device: torch.device) -> None:
        super().__init__(hidden_size, 1, device=device)

    def reset_parameters(self) -> None:
        """Sets w and b to 0. Drawing them, as `nn.Linear` does, would use up numbers of the global generator."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """V, [B, T], of hidden states [B, T, H].

        Raises:
            ValueError: the hidden states have another shape, as Gemma3n's have.
        """
        if hidden.ndim != 3:
            raise ValueError(
                f"V needs last hidden states of the shape [B, L, H]; this model's are {list(hidden.shape)}: it can be "
                "a reference, but not a policy."
            )
        return super().forward(hidden.to(self.weight.dtype)).squeeze(2)
