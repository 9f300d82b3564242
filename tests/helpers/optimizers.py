"""Optimizers that tests name `tests.helpers.optimizers:...`."""

from __future__ import annotations

from typing import Any

import torch


def momentum(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Gradient descent with momentum, whose state is one tensor."""
    return torch.optim.SGD(groups, lr=1e-3, momentum=0.9)


class Harmonic(torch.optim.SGD):
    """Gradient descent whose steps shrink as 1 / k; the state has numbers, and no tensor."""

    def step(self, closure: Any = None) -> Any:
        """Takes a step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["k"], state["scale"] = state.get("k", 0) + 1, 1.0 / (state.get("k", 0) + 1)
                    with torch.no_grad():
                        parameter -= group["lr"] * state["scale"] * parameter.grad
        return None


class InGroups(torch.optim.SGD):
    """Gradient descent that counts its steps in the parameter groups, as Prodigy does."""

    def step(self, closure: Any = None) -> Any:
        """Takes a step."""
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
        return super().step(closure)


class InList(torch.optim.SGD):
    """Gradient descent that keeps a list of each parameter."""

    def step(self, closure: Any = None) -> Any:
        """Takes a step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["history"] = [1.0]
        return super().step(closure)


class Shared(torch.optim.SGD):
    """Gradient descent with state that belongs to no parameter."""

    def step(self, closure: Any = None) -> Any:
        """Takes a step."""
        self.state["all"] = {"k": 1}
        return super().step(closure)


def nothing(groups: list[dict[str, Any]]) -> None:
    """No optimizer."""


NO_FUNCTION = 3
