"""The soft Bellman equation of a tree: V* of every state, and what a policy loses in it.

    V*(s) = beta log sum_a pi_ref(a|s) exp(Q*(s, a) / beta)

with Q*(s, a) the score and the shaping of a in s, and V*(s a): without the KL of a itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from textenv.categorical import logsumexp
from textenv.state import Array
from textenv.tree import Level, Tree


def optimal_values(tree: Tree, kl_coef: float) -> tuple[Array, Array]:
    """V* [S] and Q* [S, V] for beta = `kl_coef`; with beta = 0, V* = max_a Q*. Q* is -inf for masked actions."""
    allowed = tree.child != -2

    def soft_maximum(level: Level, q_values: Array) -> Array:
        if kl_coef == 0:
            best: Array = np.where(allowed[level], q_values, -np.inf).max(axis=1)
            return best
        return kl_coef * logsumexp(tree.ref_log_probs[level] + q_values / kl_coef)

    values, q_values = tree.backward(soft_maximum)
    return values, np.where(allowed, q_values, -np.inf)


def state_costs(
    tree: Tree, kl_coef: float, values: Array, q_values: Array, log_probs: Array, occupancy: Array
) -> NDArray[np.float64]:
    """Each state's part of J* - J, [S], see `suboptimality_by_state`.

    Args:
        tree: the enumeration.
        kl_coef: beta.
        values, q_values: V* [S] and Q* [S, V] for this beta.
        log_probs: log pi(a|s), [S, V].
        occupancy: d(s) of pi, [S].
    """
    probs = np.exp(log_probs)
    allowed = tree.child != -2
    log_ratio = np.where(probs > 0, log_probs - np.where(allowed, tree.ref_log_probs, 0.0), 0.0)
    shortfall = values - (probs * (np.where(allowed, q_values, 0.0) - kl_coef * log_ratio)).sum(axis=1)
    return np.asarray(occupancy * np.maximum(shortfall, 0.0))  # rounding may give -1e-16
