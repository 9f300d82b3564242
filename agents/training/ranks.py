"""Several processes train one policy: what each must know of the others.

A launcher (`accelerate launch`, `torchrun`) starts R processes, the ranks. Each collects its share of the n_episodes
answers, its whole groups of num_generations. A mean per answer over the whole batch is the mean over ranks, since all
have equally many answers:

    grad L = 1/B sum_i grad L_i = 1/R sum_r (R/B sum_{i of r} grad L_i)

So gradients are averaged, once a step and as Adam reads them: `all_reduce_gradients`. DistributedDataParallel would do it
once a micro-batch, and in the weights' own dtype, where gradients are added up in float32 (`agents.masters`).

That holds only where L_i is the same as in one process, and what whitens it, or is subtracted from it, is a statistic
of all answers. Sums are what ranks can add up, so such statistics are written as sums: `all_reduce_sum`.

In one process every function here changes nothing.
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
    """Whether there are other ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Which of the processes this is; 0 writes to disk and screen."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """R."""
    return dist.get_world_size() if is_distributed() else 1


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of every rank's tensor, the same on all of them."""
    if not is_distributed():
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def all_reduce_gradients(parameters: Iterable[Tensor]) -> None:
    """Put the mean of every rank's gradients in their place; all ranks have gradients of the same parameters.

    Those of a sharded copy (`agents.sharding`) are left as they are: FSDP averages them in the backward pass.
    """
    if not is_distributed():
        return
    gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    sent = [dist.all_reduce(gradient, async_op=True) for gradient in gradients]
    for gradient, work in zip(gradients, sent, strict=True):
        work.wait()
        gradient /= world_size()


def broadcast_parameters(parameters: Iterable[Tensor]) -> None:
    """Give every rank the first one's weights."""
    if is_distributed():
        for parameter in parameters:
            dist.broadcast(parameter.detach(), src=0)


def gather_objects(mine: T) -> list[T]:
    """Every rank's object, in their order."""
    if not is_distributed():
        return [mine]
    everyones: list[Any] = [None] * world_size()
    dist.all_gather_object(everyones, mine)
    return everyones


def run_on_rank0(make: Callable[[], T]) -> T:
    """What rank 0 makes, told to the others, which wait for it: for what may be done once, such as a new folder."""
    if not is_distributed():
        return make()
    told: list[Any] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(told)
    made: T = told[0]
    return made


def per_rank(count: int) -> int:
    """How many of `count` are this rank's."""
    return count // world_size()


def rank_seed(seed: int | None) -> int | None:
    """A seed of its own for each rank, so that no two write the same answers; the seed itself for rank 0."""
    if seed is None or rank() == 0:
        return seed
    return int(np.random.SeedSequence([seed, rank()]).generate_state(1, np.uint64)[0])
