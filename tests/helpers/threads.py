"""Ranks as threads of one process: a stand-in for torch.distributed that takes milliseconds.

The collectives exchange values through a list and a barrier. Whether gloo and NCCL do the same is tested by two OS
processes (tests/helpers/ranks.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from agents.training import ranks

T = TypeVar("T")
TIMEOUT = 60.0  # seconds, after which ranks that wait for each other raise BrokenBarrierError


class Done:
    """The handle of a collective that has ended."""

    def wait(self) -> None:
        """Returns at once."""


class ThreadRanks:
    """The part of `torch.distributed` that `agents.training.ranks` calls, for threads."""

    def __init__(self, world_size: int) -> None:
        self.size = world_size
        self.barrier = threading.Barrier(world_size)
        self.slots: list[Any] = [None] * world_size
        self.local = threading.local()

    def exchange(self, value: T) -> list[T]:
        """The values of all ranks, on each."""
        self.slots[self.local.rank] = value
        self.barrier.wait(TIMEOUT)
        found = list(self.slots)
        self.barrier.wait(TIMEOUT)
        return found

    def is_available(self) -> bool:
        """Always."""
        return True

    def is_initialized(self) -> bool:
        """Within `on_threads`."""
        return hasattr(self.local, "rank")

    def get_world_size(self) -> int:
        """The number of threads."""
        return self.size

    def get_rank(self) -> int:
        """The number of this thread."""
        return int(self.local.rank)

    def all_reduce(self, x: Tensor, async_op: bool = False) -> Done:
        """Replaces x by the sum over the ranks."""
        total = torch.stack(self.exchange(x.clone())).sum(dim=0)
        x.copy_(total)
        return Done()

    def broadcast(self, x: Tensor, src: int) -> None:
        """Replaces x by that of rank `src`."""
        x.copy_(self.exchange(x.clone())[src])

    def all_gather_object(self, found: list[Any], value: Any) -> None:
        """Fills `found` with the values of all ranks."""
        found[:] = self.exchange(value)

    def broadcast_object_list(self, values: list[Any], src: int = 0) -> None:
        """Replaces the values by those of rank `src`."""
        values[:] = self.exchange(list(values))[src]


def on_threads(run: Callable[[int], T], world_size: int = 2) -> list[T]:
    """Calls `run(rank)` on each rank; returns what each returned."""
    fake = ThreadRanks(world_size)

    def run_rank(rank: int) -> T:
        fake.local.rank = rank
        try:
            return run(rank)
        except BaseException:
            fake.barrier.abort()  # the others would wait
            raise

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(world_size) as pool:
        patch.setattr(ranks, "dist", fake)
        futures = [pool.submit(run_rank, rank) for rank in range(world_size)]
        errors = [error for each in futures if (error := each.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error  # the cause, rather than that of the rank that waited for it
        return [each.result() for each in futures]
