"""Optimizer steps: what is trained, the tensors that the optimizer steps in its place, and the step sizes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor

from agents.policy import TransformerPolicy
from agents.training.master_weights import MasterWeights
from agents.training.optimizer_state import check_state, group_settings
from agents.training.optimizers import ParameterGroups, Rate, find_optimizer, rate_at, rate_factor
from agents.training.sharding import gather_tensor


class Optimization:
    """Steps the trained parameters of a policy.

    Master weights and optimizer are made when they are first used, after `Agent.distribute`: a copy that was made
    before would hold unsharded weights.

    Args:
        policy: its parameters that require a gradient are trained.
        optimizer: its name, see `find_optimizer`.
        rate: the step size of the policy's model, or a function of the share of the training that is done.
        critic_rate: the step size of the value head and of a separate critic; None is `rate`.

    Attributes:
        trained: the parameters.
        learner: computes the losses: the policy itself, or its sharded copy.
    """

    def __init__(self, policy: TransformerPolicy, optimizer: str, rate: Rate, critic_rate: float | None = None) -> None:
        self.policy = policy
        self.learner: torch.nn.Module = policy
        self.trained = trainable_parameters(policy)
        self._norm, self._number, self._measured = torch.zeros(()), 0.0, list[tuple[int, int]]()
        self._make_optimizer, self._rate = find_optimizer(optimizer), rate
        first = rate_at(rate, 0.0)
        self._first_rates = (first, first if critic_rate is None else critic_rate)

    @cached_property
    def master_weights(self) -> MasterWeights:
        """What the optimizer steps."""
        return MasterWeights(self.trained, trainable_parameters(self.learner))

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer."""
        return self._make_optimizer(self.master_weights.parameter_groups(self.parameter_groups()))

    @property
    def stepped(self) -> list[Tensor]:
        """The tensors that the optimizer steps, in the order of `trained`; they have the gradients."""
        return self.master_weights.for_parameters(self.trained)

    @property
    def started(self) -> bool:
        """Whether there are master weights already."""
        return "master_weights" in vars(self)

    def parameter_groups(self) -> ParameterGroups:
        """The optimizer's parameter groups: the policy's model, and the critic with its own step size."""
        model = {id(parameter) for parameter in self.policy.model.parameters()}
        parts = ([p for p in self.trained if (id(p) in model) is of_model] for of_model in (True, False))
        return [{"params": part, "lr": rate} for part, rate in zip(parts, self._first_rates, strict=True)]

    def set_rates(self, share: float, num_updates: int, schedule: str, warmup: int) -> None:
        """Sets the step sizes of the next update, see `rate_factor`."""
        factor = rate_factor(self._rate, schedule, warmup, share, num_updates)
        for group in self.optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    def drop_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Leaves some of the policy's parameters out of the next step."""
        for master in self.master_weights.for_parameters(parameters):
            master.grad = None

    def measure_gradient(self) -> Tensor:
        """Returns the norm of the gradient, a scalar on the device; `know_norm` takes it when it has been read."""
        gradients = [each.grad for each in self.stepped if each.grad is not None]
        self._measured = versions(gradients)
        if not gradients:  # torch's norm of none is on the CPU
            return torch.zeros((), device=self.policy.device)
        self._norm = torch.nn.utils.get_total_norm(gradients)
        return gather_tensor(self._norm)

    def know_norm(self, number: float) -> None:
        """Takes note of the norm that was measured, as a number."""
        self._number = number

    def gradient_norm(self) -> float:
        """The norm of the gradient. A gradient that was changed since it was measured is measured again."""
        if self._measured != versions(each.grad for each in self.stepped if each.grad is not None):
            self.know_norm(self.measure_gradient().item())
        return self._number

    def clip_gradients(self, largest: float) -> None:
        """Scales the gradient, after `gradient_norm`, down to a norm."""
        torch.nn.utils.clip_grads_with_norm_(self.stepped, largest, self._norm)

    def step(self) -> None:
        """Takes an optimizer step, and rounds its result to the policy's weights.

        Raises:
            ValueError: the optimizer has state that could not be saved.
        """
        before = group_settings(self.optimizer)
        self.optimizer.step()
        check_state(self.optimizer, before)
        self.master_weights.update_weights()


def trainable_parameters(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The module's parameters that require a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def versions(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    """What tells whether tensors were changed in place or replaced."""
    return [(id(tensor), tensor._version) for tensor in tensors]
