"""Every batch is listed once, with its probability."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from agents.verification.batches import TooManyBatches, count_batches, enumerate_batches

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
    found = dict(zip(map(tuple, batches.rows.tolist()), batches.probability(PI).tolist(), strict=True))
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
