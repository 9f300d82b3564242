"""An optimizer's state as named tensors, to be saved. That of any optimizer whose state is tensors and numbers.

    optimizer.PARAMETER.KEY          a tensor: Adam's exp_avg, exp_avg_sq and step, Adagrad's sum and step
    optimizer.PARAMETER.number.KEY   a number

PARAMETER is a name in `policy.named_parameters()`; one that had no gradient may have no state. The tensors are whole,
whether the training is sharded or not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.files import DamagedFile
from agents.training.sharding import gather_moments, shard_moments

# What each parameter's state holds; of other optimizers, what that of any parameter holds.
KEYS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.Adam: ("exp_avg", "exp_avg_sq", "step"),
    torch.optim.Adagrad: ("sum", "step"),
}
PREFIX, NUMBER = "optimizer.", "number."


def parameter_names(policy: torch.nn.Module) -> dict[int, str]:
    """The names of a policy's parameters, by their `id`."""
    return {id(parameter): name for name, parameter in policy.named_parameters()}


def optimizer_tensors(
    policy: torch.nn.Module, optimizer: torch.optim.Optimizer, parameters: list[Tensor]
) -> dict[str, Tensor]:
    """Returns an optimizer's state. Every rank calls it; the tensors of rank 0 are whole.

    Args:
        policy: has the parameters' names.
        optimizer: the optimizer.
        parameters: the policy's parameters, in the order of those that the optimizer steps.

    Raises:
        TypeError: the state has something else than tensors and numbers.
    """
    names, state = parameter_names(policy), gather_moments(optimizer.state_dict())["state"]
    tensors: dict[str, Tensor] = {}
    for index, parameter in enumerate(parameters):
        for key, value in state.get(index, {}).items():
            name = f"{PREFIX}{names[id(parameter)]}"
            if isinstance(value, Tensor):
                tensors[f"{name}.{key}"] = value
            elif isinstance(value, int | float):
                tensors[f"{name}.{NUMBER}{key}"] = torch.tensor(
                    value, dtype=torch.float64 if isinstance(value, float) else None
                )
            elif value is not None:  # SGD without momentum; another rank's tensor
                raise TypeError(f"{type(optimizer).__name__}'s state must be tensors and numbers, got {key} {value!r}.")
    return tensors


def load_optimizer_tensors(
    policy: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    parameters: list[Tensor],
    tensors: dict[str, Tensor],
    path: Path,
) -> None:
    """Restores an optimizer's state from `optimizer_tensors`; step sizes and other settings stay the optimizer's.

    Args:
        policy, optimizer, parameters: as of `optimizer_tensors`.
        tensors: the tensors of a file; the optimizer's are removed.
        path: the file, for error messages.

    Raises:
        DamagedFile: a tensor is missing, or has another shape than its parameter.
    """
    names, known = parameter_names(policy), KEYS.get(type(optimizer))
    prefixes = [f"{PREFIX}{names[id(parameter)]}." for parameter in parameters]
    found = [{name[len(prefix) :] for name in tensors if name.startswith(prefix)} for prefix in prefixes]
    keys = known if known and not optimizer.defaults.get("amsgrad") else sorted(set().union(*found))
    state: dict[int, dict[str, Any]] = {}
    for index, (parameter, prefix) in enumerate(zip(parameters, prefixes, strict=True)):
        if not found[index] & set(keys):
            continue
        state[index] = {}
        for key in keys:
            shape = None if known is None else torch.Size([]) if key == "step" else parameter.shape
            tensor = take_tensor(tensors, prefix + key, shape, path)
            if key.startswith(NUMBER):
                state[index][key.removeprefix(NUMBER)] = tensor.item()
            else:
                state[index][key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(shard_moments({"state": state, "param_groups": groups}, optimizer))


def drop_optimizer_tensors(tensors: dict[str, Tensor]) -> None:
    """Removes an optimizer's state from the tensors of a file."""
    for name in [name for name in tensors if name.startswith(PREFIX)]:
        del tensors[name]


def take_tensor(tensors: dict[str, Tensor], name: str, shape: torch.Size | None, path: Path) -> Tensor:
    """Removes a tensor from those of a file, and returns it.

    Raises:
        DamagedFile: it is missing, or no float tensor of the shape; with None it may be any.
    """
    tensor = tensors.pop(name, None)
    if tensor is None or (shape is not None and (tensor.shape != shape or not tensor.is_floating_point())):
        found = "none" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
        expected = "a tensor" if shape is None else f"a float tensor {list(shape)}"
        raise DamagedFile(f"{path} must hold {name}, {expected}, got {found}.")
    return tensor
