"""What resuming an agent needs besides the policy, as named tensors.

    optimizer. ...              the optimizer's state, see `agents.training.optimizer_state`
    master_weights.PARAMETER    float32, of each trained parameter in bfloat16
    generators                  uint8 [R, bytes], the state of each rank's generator
    rank.RANK. ...              what an agent has besides on each rank, see `Agent.own_state`

The tensors are whole, sharded training or not, so that another number of ranks can load them: each then begins with a
new generator, and without what an agent had besides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.files import DamagedFile
from agents.training import (
    gather_objects,
    load_optimizer_tensors,
    optimizer_tensors,
    parameter_names,
    rank,
    take_tensor,
    world_size,
)

RANK = "rank."


def collect_training_state(agent: Any) -> dict[str, Tensor]:
    """Returns the tensors of an agent. Every rank calls it; those of rank 0 are whole."""
    tensors = optimizer_tensors(agent.policy, agent.optimization.optimizer, _optimized(agent))
    tensors |= dict(zip(_master_names(agent), agent.optimization.master_weights.state(), strict=True))
    own = enumerate(gather_objects(agent.own_state()))
    tensors |= {f"{RANK}{number}.{name}": tensor for number, each in own for name, tensor in each.items()}
    return tensors | {"generators": torch.stack(gather_objects(agent.generator.get_state()))}


def restore_own_state(agent: Any, tensors: dict[str, Tensor], world: int, path: Path) -> None:
    """Restores what an agent has besides on this rank, unless the world size was another.

    Args:
        agent: the agent.
        tensors: see `collect_training_state`; those of the ranks are removed.
        world: the world size of the saved agent.
        path: the file of the tensors, for error messages.

    Raises:
        DamagedFile: the tensors are not those of the agent.
    """
    own = {name: tensors.pop(name) for name in [name for name in tensors if name.startswith(RANK)]}
    if world == world_size():
        prefix = f"{RANK}{rank()}."
        agent.restore_own_state({n.removeprefix(prefix): x for n, x in own.items() if n.startswith(prefix)}, path)


def restore_optimizer(agent: Any, tensors: dict[str, Tensor], path: Path) -> None:
    """Restores the optimizer's state and the master weights; step sizes stay those of the agent's settings.

    Args:
        agent: an agent with the saved policy.
        tensors: see `collect_training_state`, without generators.
        path: their file, for error messages.

    Raises:
        DamagedFile: a tensor is missing or has another shape than its parameter, or there is one too many.
    """
    load_optimizer_tensors(agent.policy, agent.optimization.optimizer, _optimized(agent), tensors, path)
    shapes = [each.parameter.shape for each in agent.optimization.master_weights.rounded]
    masters = zip(_master_names(agent), shapes, strict=True)
    agent.optimization.master_weights.load_state([take_tensor(tensors, name, shape, path) for name, shape in masters])
    if tensors:
        raise DamagedFile(f"{path} holds {min(tensors)!r:.100}, which no trained parameter of the policy has.")


def restore_generator(agent: Any, states: Tensor, num_updates: int, path: Path) -> None:
    """Restores this rank's generator.

    Args:
        agent: the agent.
        states: uint8 [R, bytes].
        num_updates: of the saved agent.
        path: the file of the states, for error messages.

    Raises:
        DamagedFile: they are not states of a generator.
    """
    if len(states) != world_size():  # each rank gets a new stream of random numbers
        agent.generator.manual_seed(agent.generator.initial_seed() + num_updates)
        return
    try:
        agent.generator.set_state(states[rank()].clone())  # an aligned copy: torch crashes on others
    except (RuntimeError, TypeError) as error:
        raise DamagedFile(f"{path}: generators must be states of torch's generators: {error}") from error


def _optimized(agent: Any) -> list[Tensor]:
    """The policy's parameters in the order of the optimizer's."""
    return [parameter for group in agent.optimization.parameter_groups() for parameter in group["params"]]


def _master_names(agent: Any) -> list[str]:
    names = parameter_names(agent.policy)
    return [f"master_weights.{names[id(each.parameter)]}" for each in agent.optimization.master_weights.rounded]
