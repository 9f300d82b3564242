"""Master weights: float32 copies of bfloat16 parameters, which the optimizer steps.

bfloat16 has 8 bits of precision. A step smaller than 1/256 of a weight would be rounded away, and a learning rate of
1e-5 makes no larger steps. So gradients are accumulated in float32, the optimizer steps the float32 copy, and the
weights are rounded from it:

    master <- step(master, grad),    weight <- round(master)

With Adam a trained parameter then takes 2 + 4 + 8 bytes besides its gradient, where float32 takes 4 + 8. bfloat16
saves in the reference, the KV cache, the activations and the arithmetic.

A sharded copy that is trained in the policy's place (`agents.training.sharding`) is held in float32. Its parameters are
the master weights, and the policy's weights are gathered from it and rounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from agents.training.optimizers import ParameterGroups
from agents.training.sharding import gather_on_rank0, gather_tensor, shard_like


class TrainedParameter(NamedTuple):
    """The policy's parameter, the one that gets the gradient, and the one that the optimizer steps; often the same."""

    parameter: Tensor
    learner: Tensor
    master: Tensor


class MasterWeights:
    """The tensors that an optimizer steps in place of some parameters.

    That is the parameter itself, or the float32 copy of a bfloat16 or float16 parameter.

    Args:
        trained: the parameters.
        learners: those of a sharded copy, in the same order; by default the parameters themselves.
    """

    def __init__(self, trained: Iterable[Tensor], learners: Iterable[Tensor] | None = None) -> None:
        trained = list(trained)
        self.entries = [
            TrainedParameter(
                parameter,
                learner,
                torch.nn.Parameter(learner.detach().float()) if is_low_precision(learner) else learner,
            )
            for parameter, learner in zip(trained, trained if learners is None else learners, strict=True)
        ]
        self.copies = [each for each in self.entries if each.master is not each.learner]
        self.rounded = [each for each in self.entries if is_low_precision(each.parameter)]
        self._master_by_id = {id(each.parameter): each.master for each in self.entries}

    def for_parameters(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        """Returns the master weights of some parameters."""
        return [self._master_by_id.get(id(parameter), parameter) for parameter in parameters]

    def parameter_groups(self, groups: ParameterGroups) -> ParameterGroups:
        """Returns an optimizer's parameter groups with master weights in place of the parameters."""
        return [group | {"params": self.for_parameters(group["params"])} for group in groups]

    @torch.no_grad()
    def accumulate_gradients(self) -> None:
        """Adds the parameters' gradients to those of the master weights, and frees them."""
        for _, learner, master in self.copies:
            if learner.grad is not None:
                if master.grad is None:
                    master.grad = learner.grad.float()
                else:
                    master.grad += learner.grad
                learner.grad = None

    @torch.no_grad()
    def update_weights(self) -> None:
        """Rounds the master weights to the parameters."""
        for parameter, learner, master in self.entries:
            if learner is not master:
                learner.copy_(master)
            if parameter is not learner:
                parameter.copy_(gather_tensor(learner.to(parameter.dtype)))

    def state(self) -> list[Tensor | None]:
        """Returns the master weights of rounded parameters, to be saved. All ranks call it; rank 0 gets the tensors."""
        return [gather_on_rank0(each.master.detach()) for each in self.rounded]

    @torch.no_grad()
    def load_state(self, state: list[Tensor]) -> None:
        """Restores the master weights from `state()`."""
        for each, saved in zip(self.rounded, state, strict=True):
            each.master.copy_(shard_like(saved, each.master))


def is_low_precision(parameter: Tensor) -> bool:
    """Whether a parameter is bfloat16 or float16."""
    return torch.finfo(parameter.dtype).bits < 32
