"""Every batch of completions that an agent may collect, with its probability."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_BATCHES = 50_000


class TooManyBatches(ValueError):
    """There are more batches than the limit of an enumeration."""


@dataclass(frozen=True)
class Batches:
    """All M batches of B completions: independent groups, each of a prompt that is drawn uniformly, as in `collect`.

    Attributes:
        rows: the completions of each batch, as rows of an `Enumeration`, int64 [M, B]; those of a group are contiguous.
        weight: float64 [M], the probability of each batch's prompts, times the number of orders of its groups that are
            not listed.
    """

    rows: Tensor
    weight: Tensor

    def probability(self, pi: Tensor) -> Tensor:
        """The probability of each batch, [M], from pi(y|x) of each completion, [N]."""
        return self.weight * pi[self.rows].prod(dim=1)


def enumerate_batches(
    prompt: Tensor, num_generations: int, num_prompts: int = 1, ordered: bool = False, limit: int = MAX_BATCHES
) -> Batches:
    """Lists every batch of `num_prompts` groups of `num_generations` completions.

    Args:
        prompt: the prompt of each completion, int64 [N].
        num_generations: K, completions per group.
        num_prompts: groups per batch.
        ordered: list each order of a group by itself; else once, for losses that do not depend on the order.
        limit: the largest number of batches.

    Raises:
        TooManyBatches: there are more; raised before any is made.
    """
    sizes = Counter(prompt.tolist())
    count = count_batches(list(sizes.values()), num_generations, num_prompts, ordered)
    if count > limit:
        raise TooManyBatches(
            f"There are {count:,} batches of {num_prompts} x {num_generations} completions, the limit is {limit:,}; "
            "take fewer prompts, a smaller toy or smaller groups."
        )
    of_prompts = [torch.nonzero(prompt == each)[:, 0].tolist() for each in sizes]
    groups = [group for rows in of_prompts for group in _groups(rows, num_generations, ordered)]
    rows, weights = [], []
    for batch in itertools.product(groups, repeat=num_prompts):
        rows.append([row for group, _ in batch for row in group])
        weights.append(math.prod(orders for _, orders in batch) / len(sizes) ** num_prompts)
    return Batches(torch.tensor(rows), torch.tensor(weights, dtype=torch.float64))


def count_batches(sizes: list[int], num_generations: int, num_prompts: int, ordered: bool) -> int:
    """The number of batches of a task whose prompts have these numbers of completions."""
    groups = (n**num_generations if ordered else math.comb(n + num_generations - 1, num_generations) for n in sizes)
    return int(sum(groups) ** num_prompts)


def _groups(rows: list[int], num_generations: int, ordered: bool) -> Iterator[tuple[tuple[int, ...], int]]:
    """The groups of these completions, each with its number of orders that are not listed, itself included."""
    if ordered:
        for group in itertools.product(rows, repeat=num_generations):
            yield group, 1
    else:
        for group in itertools.combinations_with_replacement(rows, num_generations):
            repeated = math.prod(math.factorial(count) for count in Counter(group).values())
            yield group, math.factorial(num_generations) // repeated
