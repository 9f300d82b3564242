"""Distributed training: several ranks train one policy.

A launcher (`accelerate launch`, `torchrun`) starts R processes, the ranks. Each rank collects its share of the
n_episodes completions, in whole groups of num_generations. Of B completions that all ranks have and that are not
skipped, the gradient of the mean loss is a mean over ranks:

    grad L = 1/B sum_i grad L_i = 1/R sum_r (R/B sum_{i of r} grad L_i)

So `all_reduce_gradients` averages the gradients, once per step and in the dtype that the optimizer uses.
DistributedDataParallel would do it once per micro-batch, and in the dtype of the weights, while gradients are
accumulated in float32 (`agents.training.master_weights`).

The equation holds only if L_i is the same as with one rank. So a statistic that whitens a quantity, or is subtracted
from it, must be that of all completions. Ranks can add up sums, so such statistics are computed from sums with
`all_reduce_sum`.

With world size 1 no function here communicates: each returns what one rank has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

T = TypeVar("T")


def is_distributed() -> bool:
    """Whether the world size is greater than 1."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """The rank of this process; rank 0 writes files and prints."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """The number of ranks, R."""
    return dist.get_world_size() if is_distributed() else 1


def all_reduce_sum(x: Tensor) -> Tensor:
    """Returns the sum of all ranks' tensors, on each rank."""
    if not is_distributed():
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def all_reduce_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces gradients by their mean over the ranks; all ranks must have gradients of the same parameters.

    Gradients of a sharded copy (`agents.training.sharding`) are left as they are: FSDP averages them in the backward
    pass.
    """
    if not is_distributed():
        return
    gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    handles = [dist.all_reduce(gradient, async_op=True) for gradient in gradients]
    for gradient, handle in zip(gradients, handles, strict=True):
        handle.wait()
        gradient /= world_size()


def broadcast_parameters(parameters: Iterable[Tensor]) -> None:
    """Replaces all ranks' parameters by those of rank 0."""
    if is_distributed():
        for parameter in parameters:
            dist.broadcast(parameter.detach(), src=0)


def gather_objects(local: T) -> list[T]:
    """Returns the objects of all ranks, in the order of the ranks, on each rank."""
    if not is_distributed():
        return [local]
    gathered = [local] * world_size()
    dist.all_gather_object(gathered, local)
    return gathered


def run_on_rank0(make: Callable[[], T]) -> T:
    """Calls `make` on rank 0 alone, for example to create a folder; all ranks wait for its result and return it."""
    if not is_distributed():
        return make()
    results: list[Any] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(results)
    result: T = results[0]
    return result


def per_rank(count: int) -> int:
    """Returns this rank's share of `count`."""
    return count // world_size()


def rank_seed(seed: int | None) -> int | None:
    """Returns a different seed for each rank, so that no two sample the same completions; rank 0 keeps `seed`."""
    if seed is None or rank() == 0:
        return seed
    return int(np.random.SeedSequence([seed, rank()]).generate_state(1, np.uint64)[0])
