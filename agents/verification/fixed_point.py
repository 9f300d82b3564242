"""Where a loss leads: the policy at which its expected gradient vanishes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from agents.verification.cases import Case, table_case
from agents.verification.measure import Measured
from textenv import exact
from textenv.exact import Tree, masked_log_softmax

MAX_STEPS = 100
SETTLED = 1e-6  # norm of the expected gradient, in units of that at the reference
DAMPING = 0.5


def fixed_point(tree: Tree, measured_at: Callable[[Case], Measured]) -> float:
    """J at the fixed point of the expected gradient that is reached from the reference, as a share of the way to J*.

    The gradient by the logits of a table is d(s) pi(a|s) A(s, a) for some A, that of J for the advantages. So each step
    is one of soft policy iteration with the advantages that the loss implies, log pi += DAMPING A / beta. It has the
    fixed points of gradient ascent, and reaches them in few steps.

    Args:
        tree: the toy.
        measured_at: the loss at a policy, on completions that it has sampled.

    Returns:
        The share of the way; 1 for an unbiased loss. nan where no fixed point is reached in 100 steps, for example
        because the loss leads to a policy without entropy.
    """
    solution, log_probs = exact.solve(tree), tree.ref_log_probs
    size, first = DAMPING / (tree.mdp.kl_coef or 1.0), 0.0
    for step in range(MAX_STEPS):
        case = table_case("", tree, log_probs)
        found = measured_at(case)
        norm = float(found.expected.norm())
        if step == 0:
            first = norm
            size *= float(found.exact.norm()) / max(norm, 1e-300)  # a factor of the loss is one of the step size
        if norm <= SETTLED * first:
            return solution.normalized_objective(case.evaluation.objective)
        visits = case.evaluation.occupancy[:, None] * np.exp(log_probs)
        gradient = found.expected.view(log_probs.shape).numpy()
        advantages = np.divide(gradient, visits, out=np.zeros_like(gradient), where=visits > 1e-12)
        log_probs = masked_log_softmax(log_probs + size * advantages, tree.child != -2)
        if not np.isfinite(np.where(tree.child != -2, log_probs, 0.0)).all() or log_probs.max() > -1e-9:
            return float("nan")
    return float("nan")
