"""Adam's state as named tensors, to be saved.

    optimizer.PARAMETER.exp_avg, .exp_avg_sq, .step    of each parameter that had a gradient

PARAMETER is a name in `policy.named_parameters()`. The tensors are whole, whether the training is sharded or not.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from agents.files import DamagedFile
from agents.training.sharding import gather_moments, shard_moments

KEYS = ("exp_avg", "exp_avg_sq", "step")


def parameter_names(policy: torch.nn.Module) -> dict[int, str]:
    """The names of a policy's parameters, by their `id`."""
    return {id(parameter): name for name, parameter in policy.named_parameters()}


def optimizer_tensors(
    policy: torch.nn.Module, optimizer: torch.optim.Optimizer, parameters: list[Tensor]
) -> dict[str, Tensor]:
    """Returns Adam's state. Every rank calls it; the tensors of rank 0 are whole.

    Args:
        policy: has the parameters' names.
        optimizer: Adam.
        parameters: the policy's parameters, in the order of those that the optimizer steps.
    """
    names, state = parameter_names(policy), gather_moments(optimizer.state_dict())["state"]
    return {
        f"optimizer.{names[id(parameter)]}.{key}": state[index][key]
        for index, parameter in enumerate(parameters)
        for key in (KEYS if index in state else ())
    }


def load_optimizer_tensors(
    policy: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    parameters: list[Tensor],
    tensors: dict[str, Tensor],
    path: Path,
) -> None:
    """Restores Adam's state from `optimizer_tensors`; step sizes and other settings stay the optimizer's.

    Args:
        policy, optimizer, parameters: as of `optimizer_tensors`.
        tensors: the tensors of a file; Adam's are removed.
        path: the file, for error messages.

    Raises:
        DamagedFile: a tensor is missing, or has another shape than its parameter.
    """
    names = parameter_names(policy)
    state: dict[int, dict[str, Tensor]] = {}
    for index, parameter in enumerate(parameters):
        prefix = f"optimizer.{names[id(parameter)]}"
        if any(f"{prefix}.{key}" in tensors for key in KEYS):
            shapes = zip(KEYS, (parameter.shape, parameter.shape, torch.Size([])), strict=True)
            state[index] = {key: take_tensor(tensors, f"{prefix}.{key}", shape, path) for key, shape in shapes}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(shard_moments({"state": state, "param_groups": groups}, optimizer))


def take_tensor(tensors: dict[str, Tensor], name: str, shape: torch.Size, path: Path) -> Tensor:
    """Removes a tensor from those of a file, and returns it.

    Raises:
        DamagedFile: it is missing, or has another shape.
    """
    tensor = tensors.pop(name, None)
    if tensor is None or tensor.shape != shape or not tensor.is_floating_point():
        found = "none" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
        raise DamagedFile(f"{path} must hold {name}, a float tensor {list(shape)}, got {found}.")
    return tensor
