"""Weights in bfloat16 learn through float32 copies of themselves, their masters.

bfloat16 has 8 bits of precision: a step smaller than 1/256 of a weight would be rounded away, and a learning rate of
1e-5 takes no other steps. So gradients are added up in float32, Adam steps there, and the weights are rounded from it:

    master <- Adam(master, grad),    weight <- round(master)

In memory a trained number takes 2 + 4 + 8 bytes beside its gradient, where float32 takes 4 + 8; what is gained is in
the reference, the KV cache, the activations, and the arithmetic.

Where a sharded copy learns in the policy's place (`agents.sharding`), it is held in float32 itself: its parameters are
the masters, and the policy's weights are gathered from it, rounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents.training.sharding import gather_on_rank0, gather_tensor, shard_like


class TrainedParameter(NamedTuple):
    """A parameter, the one that has its gradient, and the one that Adam steps; often one and the same."""

    parameter: Tensor
    learner: Tensor
    master: Tensor


class MasterWeights:
    """What an optimizer steps in the place of each of some parameters.

    The parameter itself; where it has few bits, its float32 copy.

    Args:
        trained: the parameters.
        learners: those of a sharded copy, in the same order; by default the parameters themselves.
    """

    def __init__(self, trained: Iterable[Tensor], learners: Iterable[Tensor] | None = None) -> None:
        trained = list(trained)
        self.all = [
            TrainedParameter(
                parameter,
                learner,
                torch.nn.Parameter(learner.detach().float()) if is_low_precision(learner) else learner,
            )
            for parameter, learner in zip(trained, trained if learners is None else learners, strict=True)
        ]
        self.copies = [one for one in self.all if one.master is not one.learner]
        self.rounded = [one for one in self.all if is_low_precision(one.parameter)]
        self._of = {id(one.parameter): one.master for one in self.all}

    def masters_of(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        """The masters of some parameters."""
        return [self._of.get(id(parameter), parameter) for parameter in parameters]

    def parameter_groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """An optimizer's parameter groups with the masters in the parameters' places."""
        return [group | {"params": self.masters_of(group["params"])} for group in groups]

    @torch.no_grad()
    def accumulate_gradients(self) -> None:
        """Add the parameters' gradients to the masters', and free them."""
        for _, learner, master in self.copies:
            if learner.grad is not None:
                if master.grad is None:
                    master.grad = learner.grad.float()
                else:
                    master.grad += learner.grad
                learner.grad = None

    @torch.no_grad()
    def update_weights(self) -> None:
        """Round the masters to the parameters."""
        for parameter, learner, master in self.all:
            if learner is not master:
                learner.copy_(master)
            if parameter is not learner:
                parameter.copy_(gather_tensor(learner.to(parameter.dtype)))

    def state(self) -> list[Tensor | None]:
        """What rounding took from the parameters, to be saved: every rank calls, the first gets them."""
        return [gather_on_rank0(one.master.detach()) for one in self.rounded]

    @torch.no_grad()
    def load_state(self, state: list[Tensor]) -> None:
        """The masters as they were saved."""
        for one, saved in zip(self.rounded, state, strict=True):
            one.master.copy_(shard_like(saved, one.master))


def is_low_precision(parameter: Tensor) -> bool:
    """Whether a parameter is bfloat16 or float16."""
    return torch.finfo(parameter.dtype).bits < 32
