"""How alike two rewards rank completions.

    a_i, b_i      ranks of completion i among the distinct ones of its prompt under each reward, minus their mean
    correlation   sum_i a_i b_i / sqrt(sum_i a_i^2 sum_i b_i^2)         over the distinct completions of all prompts

This is the rank correlation of `check-reward`, within prompts: that one prompt scores higher than another under both
rewards is no agreement about completions. With one prompt it is Spearman's. A completion counts once: a trained policy
samples some texts again and again, and a copy says nothing new about two rewards.

Under unrelated rewards each order of the b_i of a prompt is equally likely. Then the mean of the correlation is 0, and
its variance sum_p A_p B_p / (n_p - 1) / (sum_p A_p sum_p B_p), where A_p and B_p are the sums of squares of prompt p
with n_p distinct completions. (It is larger where many completions differ in a word: their scores are not independent.)
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

FEWEST = 2  # completions in addition to one of each prompt: with one the correlation is 1 or -1 always
Array = NDArray[np.float64]


class RankCorrelation(NamedTuple):
    """A rank correlation within prompts.

    Attributes:
        value: from -1 to 1; None where there are too few distinct completions a prompt (see `FEWEST`), or one of the
            rewards scores those of each prompt alike.
        by_chance: its standard deviation under unrelated rewards; None where `value` is.
        num_distinct: different completions that have both scores.
    """

    value: float | None
    by_chance: float | None
    num_distinct: int


def rank_correlation(completions: Sequence[tuple[Hashable, str]], own: Array, new: Array) -> RankCorrelation:
    """The rank correlation of two scores.

    Args:
        completions: N prompts with their completions; of equal ones the first counts.
        own, new: scores, [N]; those that are nan in one of the two are left out.
    """
    known = ~np.isnan(own) & ~np.isnan(new)
    first = {key: i for i, key in reversed(list(enumerate(completions))) if known[i]}
    rows: dict[Hashable, list[int]] = {}
    for (prompt, _), i in first.items():
        rows.setdefault(prompt, []).append(i)
    several = [group for group in rows.values() if len(group) > 1]
    ranks = [[_centred_ranks(scores[group]) for scores in (own, new)] for group in several]
    squares = np.array([[a @ a, b @ b] for a, b in ranks]).reshape(-1, 2)
    size = float(np.sqrt(np.prod(squares.sum(axis=0))))
    degrees = np.array([len(group) - 1 for group in several], dtype=np.float64)
    if degrees.sum() < FEWEST or size == 0:
        return RankCorrelation(None, None, len(first))
    by_chance = float(np.sqrt((squares.prod(axis=1) / degrees).sum())) / size
    return RankCorrelation(float(sum(a @ b for a, b in ranks)) / size, by_chance, len(first))


def rank_differences(own: Array, new: Array) -> Array:
    """How much higher the new score ranks a completion than the own one, [N], in shares of N: from -1 to 1.

    Ranks do not depend on the units of the two; equal scores share theirs. Nan where one of the two is.
    """
    known = ~np.isnan(own) & ~np.isnan(new)
    differences = np.full(len(own), np.nan)
    if known.any():
        ranks = [stats.rankdata(values[known]) for values in (own, new)]
        differences[known] = (ranks[1] - ranks[0]) / known.sum()
    return differences


def _centred_ranks(scores: Array) -> Array:
    ranks: Array = stats.rankdata(scores)
    centred: Array = ranks - ranks.mean()
    return centred
