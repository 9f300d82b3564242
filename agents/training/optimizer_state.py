"""An optimizer's state as named tensors, to be saved. Its state must be tensors and numbers, per parameter.

    optimizer.PARAMETER.KEY          a tensor: Adam's exp_avg, exp_avg_sq and step, Adagrad's sum and step
    optimizer.PARAMETER.number.KEY   a number
    optimizer.keys                   the names of the above, as bytes; Adam and Adagrad have none: theirs are known

PARAMETER is a name in `policy.named_parameters()`; one that had no gradient may have no state. The tensors are whole,
whether the training is sharded or not.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from agents.files import DamagedFile
from agents.training.sharding import gather_moments, shard_moments

# What each parameter's state holds. Other optimizers keep what they like of each: Adafactor of a vector another tensor
# than of a matrix. So a file names what they have kept, and a tensor that is missing is noticed.
KEYS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.Adam: ("exp_avg", "exp_avg_sq", "step"),
    torch.optim.Adagrad: ("sum", "step"),
}
PREFIX, NUMBER, NAMES = "optimizer.", "number.", "optimizer.keys"


def parameter_names(policy: torch.nn.Module) -> dict[int, str]:
    """The names of a policy's parameters, by their `id`."""
    return {id(parameter): name for name, parameter in policy.named_parameters()}


def group_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, str]]:
    """The settings of each parameter group but its step size, as text to compare."""
    return [
        {name: repr(value) for name, value in group.items() if name not in ("params", "lr")}
        for group in optimizer.param_groups
    ]


def check_state(optimizer: torch.optim.Optimizer, before: list[dict[str, str]]) -> None:
    """Checks after a step that an optimizer can be saved; `before` is `group_settings` before the step.

    Raises:
        ValueError: it has state elsewhere than per parameter, or one that is neither tensor nor number.
    """
    name = type(optimizer).__name__
    rule = (
        f"optimizer must keep its state per parameter, as tensors and numbers, which can be saved; {name} keeps {{}}."
    )
    for old, new in zip(before, group_settings(optimizer), strict=True):
        if changed := sorted(key for key in new if old.get(key) != new[key]):
            raise ValueError(rule.format(f"{changed[0]} in its parameter groups"))
    for parameter, state in optimizer.state.items():
        if not isinstance(parameter, Tensor):
            raise ValueError(rule.format(f"the state {parameter!r:.100}"))
        for key, value in state.items():
            if not isinstance(value, Tensor | int | float | None):
                raise ValueError(rule.format(f"{key} {value!r:.100}"))


def optimizer_tensors(
    policy: torch.nn.Module, optimizer: torch.optim.Optimizer, parameters: list[Tensor]
) -> dict[str, Tensor]:
    """Returns an optimizer's state, see `check_state`. Every rank calls it; the tensors of rank 0 are whole.

    Args:
        policy: has the parameters' names.
        optimizer: the optimizer.
        parameters: the policy's parameters, in the order of those that the optimizer steps.
    """
    names, state = parameter_names(policy), gather_moments(optimizer.state_dict())["state"]
    tensors: dict[str, Tensor] = {}
    for index, parameter in enumerate(parameters):
        for key, value in state.get(index, {}).items():
            name = f"{PREFIX}{names[id(parameter)]}"
            if isinstance(value, Tensor):
                tensors[f"{name}.{key}"] = value
            elif value is not None:  # SGD without momentum; another rank's tensor
                tensors[f"{name}.{NUMBER}{key}"] = torch.tensor(
                    value, dtype=torch.float64 if isinstance(value, float) else None
                )
    if known_keys(optimizer) is None:
        tensors[NAMES] = torch.frombuffer(bytearray("\n".join(tensors) + "\n", "utf-8"), dtype=torch.uint8)
    return tensors


def known_keys(optimizer: torch.optim.Optimizer) -> tuple[str, ...] | None:
    """What each parameter's state holds, where that is known."""
    return None if optimizer.defaults.get("amsgrad") else KEYS.get(type(optimizer))


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
    names, known = parameter_names(policy), known_keys(optimizer)
    listed = take_names(tensors, path) if known is None else None
    state: dict[int, dict[str, Tensor | float]] = {}
    for index, parameter in enumerate(parameters):
        prefix = f"{PREFIX}{names[id(parameter)]}."
        found = {name[len(prefix) :] for name in tensors if name.startswith(prefix)}
        if known is not None:
            keys: Iterable[str] = known if found & set(known) else ()
        else:  # older files have no list
            keys = found if listed is None else [name[len(prefix) :] for name in listed if name.startswith(prefix)]
        for key in keys:
            shape = None if known is None else torch.Size([]) if key == "step" else parameter.shape
            tensor = take_tensor(tensors, prefix + key, shape, path)
            value = tensor.item() if key.startswith(NUMBER) else tensor
            state.setdefault(index, {})[key.removeprefix(NUMBER)] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(shard_moments({"state": state, "param_groups": groups}, optimizer))


def take_names(tensors: dict[str, Tensor], path: Path) -> list[str] | None:
    """Removes the list of an optimizer's tensors from those of a file, and returns it; None where there is none.

    Raises:
        DamagedFile: it is no list of names.
    """
    if (data := tensors.pop(NAMES, None)) is None:
        return None
    try:
        return bytes(data.tolist()).decode().splitlines()
    except (TypeError, ValueError) as error:
        raise DamagedFile(f"{path} must hold {NAMES}, names as bytes, got {data.dtype} {list(data.shape)}.") from error


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
