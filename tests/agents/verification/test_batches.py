"""Every batch is listed once, with its probability."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from agents.verification.batches import SampledBatches, TooManyBatches, count_batches, enumerate_batches

PROMPT = torch.tensor([0, 0, 0, 1, 1])
PI = torch.tensor([0.5, 0.3, 0.2, 0.9, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("num_generations", "num_prompts"), [(1, 1), (2, 1), (3, 1), (2, 2), (1, 3)])
def test_the_batches_are_those_of_independent_draws(num_generations: int, num_prompts: int, ordered: bool) -> None:
    """By brute force over every sequence of prompts and completions; in groups sorted, unless the order counts."""
    expected = Counter[tuple[int, ...]]()
    for prompts in itertools.product([0, 1], repeat=num_prompts):
        of_groups = [torch.nonzero(prompt == PROMPT)[:, 0].tolist() for prompt in prompts]
        draws = itertools.product(*(itertools.product(rows, repeat=num_generations) for rows in of_groups))
        for groups in draws:
            rows = tuple(row for group in groups for row in (group if ordered else sorted(group)))
            probability = float(PI[list(itertools.chain(*groups))].prod()) / 2**num_prompts
            expected[rows] += probability  # type: ignore[assignment]
    batches = enumerate_batches(PROMPT, num_generations, num_prompts, ordered)
    rows, weights = batches.weighted(PI)
    found = dict(zip(map(tuple, rows.tolist()), weights.tolist(), strict=True))
    assert found == pytest.approx(dict(expected)) and sum(found.values()) == pytest.approx(1.0)
    assert len(found) == len(batches.rows) == count_batches([3, 2], num_generations, num_prompts, ordered)


def test_too_many_are_refused_with_their_number() -> None:
    """Before any is made. Control: the number itself is allowed."""
    count = count_batches([3, 2], 4, 2, False)
    assert len(enumerate_batches(PROMPT, 4, 2, limit=count).rows) == count
    message = f"There are {count:,} batches of 2 x 4 completions, the limit is {count - 1:,}"
    with pytest.raises(TooManyBatches, match=message):
        enumerate_batches(PROMPT, 4, 2, limit=count - 1)
    with pytest.raises(TooManyBatches, match="There are 10,000,"):
        enumerate_batches(torch.zeros(100, dtype=torch.int64), 1, 50)


def test_batches_without_probability_are_left_out() -> None:
    """A sampler that never samples a completion has no batch with it."""
    rows, weights = enumerate_batches(PROMPT, 2).weighted(torch.tensor([0.5, 0.0, 0.5, 0.9, 0.1]).double())
    assert len(rows) == 3 + 3 and not (rows == 1).any() and weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(("num_generations", "num_prompts"), [(2, 1), (1, 2)])
def test_sampled_batches_are_as_frequent_as_they_are_probable(num_generations: int, num_prompts: int) -> None:
    """Within 5 standard errors each. Control: with uniform probabilities they are not."""
    sampled, weights = SampledBatches(PROMPT, num_generations, num_prompts, 20_000, seed=0).weighted(PI)
    assert weights.sum() == pytest.approx(1.0)
    counts = Counter(map(tuple, sampled.tolist()))

    def errors(pi: torch.Tensor) -> list[float]:
        listed = enumerate_batches(PROMPT, num_generations, num_prompts, ordered=True)
        rows, probability = listed.weighted(pi)
        return [
            abs(counts[tuple(row)] - 20_000 * p) / (20_000 * p * (1 - p)) ** 0.5
            for row, p in zip(rows.tolist(), probability.tolist(), strict=True)
        ]

    uniform = torch.tensor([1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2], dtype=torch.float64)
    assert max(errors(PI)) < 5 < max(errors(uniform))
