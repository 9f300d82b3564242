"""Samplers that are not the policy: whose completions a loss gets, and whose log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.verification.cases import Case, table_case
from textenv.exact import Tree, masked_log_softmax

if TYPE_CHECKING:
    Table = NDArray[np.float64]  # log pi(a|s), [S, V]

TEMPERATURE = 1.5


@dataclass(frozen=True)
class OtherSampler:
    """How completions are sampled instead of from pi.

    Attributes:
        distribution: from log pi and the tree to the log-probabilities that are sampled from, [S, V].
        returned: from those to the log-probabilities that the sampler returns.
    """

    distribution: Callable[[Table, Tree], Table]
    returned: Callable[[Table], Table] = lambda log_probs: log_probs

    def behaviour(self, case: Case) -> tuple[Case, Tensor]:
        """The behaviour policy where pi is that of the case, and log pi(a|s) as the sampler returns it."""
        tree = case.completions.tree
        log_probs = self.distribution(case.log_probs.numpy(), tree)
        return table_case(case.name, tree, log_probs), torch.as_tensor(self.returned(log_probs))


def reference(log_probs: Table, tree: Tree) -> Table:
    """pi_ref."""
    return tree.ref_log_probs


def older(log_probs: Table, tree: Tree) -> Table:
    """A policy between the reference and pi: the mean of their log-probabilities, normalised."""
    allowed = tree.child != -2
    return masked_log_softmax(np.where(allowed, (log_probs + tree.ref_log_probs) / 2, 0.0), allowed)


def temperature(log_probs: Table, tree: Tree, value: float = TEMPERATURE) -> Table:
    """pi at another temperature."""
    allowed = tree.child != -2
    return masked_log_softmax(np.where(allowed, log_probs, 0.0) / value, allowed)


def top_k(log_probs: Table, tree: Tree, k: int | None = None) -> Table:
    """The k most likely tokens of each state, by default all but the least likely."""
    k = log_probs.shape[1] - 1 if k is None else k
    rank = np.argsort(np.argsort(-log_probs, axis=1, kind="stable"), axis=1)
    return _restricted(log_probs, rank < k)


def top_p(log_probs: Table, tree: Tree, p: float = 0.9) -> Table:
    """The most likely tokens of each state that have the probability p together."""
    order = np.argsort(-log_probs, axis=1, kind="stable")
    probs = np.take_along_axis(np.exp(log_probs), order, axis=1)
    before = np.cumsum(probs, axis=1) - probs
    kept = np.zeros(log_probs.shape, dtype=bool)
    np.put_along_axis(kept, order, before < p, axis=1)
    return _restricted(log_probs, kept)


def unchanged(log_probs: Table, tree: Tree) -> Table:
    """pi itself."""
    return log_probs


def rounded(log_probs: Table, tree: Tree) -> Table:
    """pi as a sampler in bfloat16 computes it: its log-probabilities rounded, and normalised again."""
    allowed = tree.child != -2
    return masked_log_softmax(np.where(allowed, bfloat16(log_probs), 0.0), allowed)


def bfloat16(log_probs: Table) -> Table:
    """Rounded to bfloat16."""
    nearest: Table = torch.as_tensor(log_probs).bfloat16().double().numpy()
    return nearest


def _restricted(log_probs: Table, kept: NDArray[np.bool_]) -> Table:
    """pi on the tokens that are kept, normalised; log pi of the others is -inf."""
    return masked_log_softmax(log_probs, kept & np.isfinite(log_probs))


ON_POLICY = OtherSampler(unchanged)
SAMPLERS = {
    "an older policy": OtherSampler(older),
    f"temperature {TEMPERATURE}": OtherSampler(temperature),
    "top-k": OtherSampler(top_k),
    "bfloat16": OtherSampler(unchanged, bfloat16),
}
