"""Is a model better than a guess? A test over groups of pairs: the pairs of one prompt are no independent evidence.

    d_g   of group g: pairs with a positive margin minus pairs with a negative one
    p     P(sum_g s_g |d_g| >= sum_g d_g),   s_g = 1 or -1, each with probability 1/2, independent

The margins of one prompt share completions: of a ranked list of four, four scores decide six margins. A guess is
therefore right or wrong about a group as a whole (a one-sided sign-flip test). Where each group has one pair, this is
the sign test. A copy of a pair is no further evidence and is left out, and a pair with margin 0 counts for neither
side.

A group is a prompt, as in `pairs.split`. Where all pairs have one prompt, it is the pairs of the same two completions:
that pairs which share only one completion are independent is then an assumption.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import signal, stats

from experiments.reward_model.pairs import Pair, group_of

SIGNIFICANCE = 0.05  # a model is better than a guess if the p-value is at most this
Array = NDArray[np.float64]


class SignTest(NamedTuple):
    """The sign-flip test of some margins.

    Attributes:
        right: different pairs with a positive margin.
        num_pairs: different pairs with a margin other than 0.
        num_groups: groups of these pairs.
        p_value: the probability that a guess is right about at least so many, see this file's docstring.
    """

    right: int
    num_pairs: int
    num_groups: int
    p_value: float


def sign_test(margin: Array, pairs: list[Pair], *, one_prompt: bool) -> SignTest:
    """The sign-flip test of the margins [N] of N pairs.

    Args:
        margin: r(x, chosen) - r(x, rejected), [N].
        pairs: the pairs.
        one_prompt: whether all pairs of the file have one prompt; then a group is the pairs of the same completions.
    """
    sign = {pair: int(np.sign(value)) for pair, value in zip(pairs, margin.tolist(), strict=True)}
    balance: dict[frozenset[str], int] = {}
    for pair, value in sign.items():
        if value:
            group = group_of(pair, one_prompt=one_prompt)
            balance[group] = balance.get(group, 0) + value
    right, count = sum(value > 0 for value in sign.values()), sum(value != 0 for value in sign.values())
    return SignTest(right, count, len(balance), _p_value(np.array(list(balance.values()), dtype=np.int64)))


def _p_value(balance: NDArray[np.int64]) -> float:
    """P(sum_g s_g |d_g| >= sum_g d_g) of d [G], exact apart from rounding.

    Let A be the sum of |d_g| over the groups with s_g = 1. The inequality is A >= the sum of the positive d_g. Of the n
    groups of one size |d_g|, Binomial(n, 1/2) have s_g = 1; A is the sum over sizes, whose distributions are convolved.
    """
    probability = np.ones(1)  # of A = 0, 1, ...
    for size, count in zip(*np.unique(np.abs(balance[balance != 0]), return_counts=True), strict=True):
        one = np.zeros(size * count + 1)
        one[::size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        probability = one if len(probability) == 1 else signal.convolve(probability, one)
    found = int(balance[balance > 0].sum())
    return float(np.clip(probability[found:].sum(), 0.0, 1.0))
