"""Weights in bfloat16 learn through float32 copies of themselves, their masters.

bfloat16 has 8 bits of precision: a step smaller than 1/256 of a weight would be rounded away, and a learning rate of
1e-5 takes no other steps. So gradients are added up in float32, Adam steps there, and the weights are rounded from it:

    master <- Adam(master, grad),    weight <- round(master)

In memory a trained number takes 2 + 4 + 8 bytes beside its gradient, where float32 takes 4 + 8; what is gained is in
the reference, the KV cache, the activations, and the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Masters:
    """The float32 copies of those of some parameters that have fewer bits; the others are their own masters."""

    def __init__(self, trained: Iterable[Tensor]) -> None:
        self.pairs = [
            (parameter, torch.nn.Parameter(parameter.detach().float())) for parameter in trained if few_bits(parameter)
        ]
        self._of = {id(parameter): master for parameter, master in self.pairs}

    def of(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        """The masters of some parameters."""
        return [self._of.get(id(parameter), parameter) for parameter in parameters]

    def groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """An optimizer's parameter groups with the masters in the parameters' places."""
        return [group | {"params": self.of(group["params"])} for group in groups]

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Add the parameters' gradients to the masters', and free them."""
        for parameter, master in self.pairs:
            if parameter.grad is not None:
                gradient = parameter.grad.float()
                master.grad = gradient if master.grad is None else master.grad + gradient
                parameter.grad = None

    @torch.no_grad()
    def give_weights(self) -> None:
        """Round the masters to the parameters."""
        for parameter, master in self.pairs:
            parameter.copy_(master)

    def state(self) -> list[Tensor]:
        """The masters, to be saved."""
        return [master.detach() for _, master in self.pairs]

    @torch.no_grad()
    def load_state(self, state: list[Tensor]) -> None:
        """The masters as they were saved."""
        for (_, master), saved in zip(self.pairs, state, strict=True):
            master.copy_(saved)


def few_bits(parameter: Tensor) -> bool:
    """Whether a parameter is bfloat16 or float16."""
    return torch.finfo(parameter.dtype).bits < 32
