"""Where a loss leads: the policy at which its expected gradient vanishes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from agents.verification.cases import Case, table_case
from agents.verification.measure import Measured
from textenv import exact
from textenv.exact import Tree, masked_log_softmax

MAX_STEPS = 60
SETTLED = 1e-4  # change of a logit in a step, times the probability of its state
DAMPING = 1.0
LARGEST_CHANGE = 1.0  # of a logit in a step


def fixed_point(tree: Tree, measured_at: Callable[[Case], Measured]) -> float:
    """J at the fixed point of the expected gradient that is reached from the reference, as a share of the way to J*.

    The gradient by the logits of a table is d(s) pi(a|s) A(s, a) for some A, that of J for the advantages. So each step
    is one of soft policy iteration with the advantages that the loss implies, log pi += DAMPING A / beta. It has the
    fixed points of gradient ascent, and reaches them in few steps. Steps are halved in states where the direction
    reverses, as at the fixed point of a loss whose advantages do not become small (GRPO's).

    Args:
        tree: the toy.
        measured_at: the loss at a policy, on completions that it has sampled.

    Returns:
        The share of the way; 1 for an unbiased loss. nan where no fixed point is reached in 60 steps, for example
        because the loss leads to a policy without entropy.
    """
    solution, log_probs = exact.solve(tree), tree.ref_log_probs
    size = np.full((len(log_probs), 1), DAMPING / (tree.mdp.kl_coef or 1.0))
    before, allowed = np.zeros_like(log_probs), tree.child != -2
    choice = allowed.sum(axis=1) > 1  # states with one allowed action have no entropy
    for step in range(MAX_STEPS):
        case = table_case("", tree, log_probs)
        found = measured_at(case)
        if step == 0:  # a factor of the loss is one of the step size
            size *= float(found.exact.norm()) / max(float(found.expected.norm()), 1e-300)
        visits = case.evaluation.occupancy[:, None] * np.exp(log_probs)
        gradient = found.expected.view(log_probs.shape).numpy()
        advantages = np.divide(gradient, visits, out=np.zeros_like(gradient), where=visits > 1e-12)
        size[(gradient * before).sum(axis=1) < 0] /= 2  # the last step was too long
        change = np.clip(size * advantages, -LARGEST_CHANGE, LARGEST_CHANGE)
        if (case.evaluation.occupancy[:, None] * np.abs(change)).max() < SETTLED:
            return solution.normalized_objective(case.evaluation.objective)
        before, log_probs = change, masked_log_softmax(log_probs + change, allowed)
        if not np.isfinite(log_probs[allowed]).all() or log_probs[choice].max() > -1e-9:
            return float("nan")
    return float("nan")
