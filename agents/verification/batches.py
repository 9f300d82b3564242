"""Every batch of completions that an agent may collect, with its probability; or some of them, sampled."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

MAX_BATCHES = 50_000


class TooManyBatches(ValueError):
    """There are more batches than the limit of an enumeration."""


class Batches(Protocol):
    """The batches over which an expectation is taken: independent groups, each of a prompt drawn as in `collect`."""

    def weighted(self, pi: Tensor) -> tuple[Tensor, Tensor]:
        """The batches and their weights, which sum to 1.

        Args:
            pi: pi(y|x) of each completion, [N].

        Returns:
            The completions of each batch, as rows of an `Enumeration`, int64 [M, B], those of a group contiguous; and
            the weight of each batch, [M].
        """
        ...


@dataclass(frozen=True)
class EnumeratedBatches:
    """Every batch, weighted by its probability.

    Attributes:
        rows: int64 [M, B], see `Batches`.
        weight: float64 [M], the probability of each batch's prompts, times the number of orders of its groups that are
            not listed.
    """

    rows: Tensor
    weight: Tensor

    def weighted(self, pi: Tensor) -> tuple[Tensor, Tensor]:
        """See `Batches`; without those of probability 0."""
        probability = self.weight * pi[self.rows].prod(dim=1)
        possible = probability > 0
        return self.rows[possible], probability[possible]


@dataclass(frozen=True)
class SampledBatches:
    """A fixed number of sampled batches of the same weight.

    Attributes:
        prompt: the prompt of each completion, int64 [N].
        num_generations: K, completions per group.
        num_prompts: groups per batch.
        count: M.
        seed: of the prompts and the completions.
    """

    prompt: Tensor
    num_generations: int
    num_prompts: int
    count: int
    seed: int

    def weighted(self, pi: Tensor) -> tuple[Tensor, Tensor]:
        """See `Batches`."""
        generator = torch.Generator().manual_seed(self.seed)
        by_prompt = torch.stack(
            [torch.where(self.prompt == each, pi, 0.0) for each in sorted(set(self.prompt.tolist()))]
        )
        drawn = torch.randint(len(by_prompt), (self.count * self.num_prompts,), generator=generator)
        groups = torch.multinomial(by_prompt[drawn], self.num_generations, replacement=True, generator=generator)
        return groups.view(self.count, -1), torch.full((self.count,), 1 / self.count, dtype=torch.float64)


def enumerate_batches(
    prompt: Tensor, num_generations: int, num_prompts: int = 1, ordered: bool = False, limit: int = MAX_BATCHES
) -> EnumeratedBatches:
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
            "take fewer prompts, a smaller toy or smaller groups, or estimate the expectation: sampled_batches=10_000."
        )
    of_prompts = [torch.nonzero(prompt == each)[:, 0].tolist() for each in sizes]
    groups = [group for rows in of_prompts for group in _groups(rows, num_generations, ordered)]
    rows, weights = [], []
    for batch in itertools.product(groups, repeat=num_prompts):
        rows.append([row for group, _ in batch for row in group])
        weights.append(math.prod(orders for _, orders in batch) / len(sizes) ** num_prompts)
    return EnumeratedBatches(torch.tensor(rows), torch.tensor(weights, dtype=torch.float64))


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
