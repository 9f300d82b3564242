"""The optimum of the KL-regularised objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.bound_policy import masked_log_softmax
from textenv.exact.evaluation import Evaluation, evaluate_log_probs
from textenv.state import Array
from textenv.tree import MAX_COMPLETIONS, Tree, enumerate_tree


@dataclass(frozen=True)
class Solution:
    """The best policy.

    Attributes:
        kl_coef: beta, for which it is the best.
        objective: J*, the mean over prompts of beta log Z(x).
        reference_objective: J(pi_ref).
        log_probs: log pi*(y|x), [N], of the finished texts in the order of `tree.leaves()`.
        values: V*(s), [S]; beta log Z(x) in the first states.
        action_log_probs: log pi*(a|s), [S, V].
        tree: the enumeration.
    """

    kl_coef: float
    objective: float
    reference_objective: float
    log_probs: NDArray[np.float64]
    values: NDArray[np.float64]
    action_log_probs: NDArray[np.float64]
    tree: Tree

    def normalized_objective(self, objective: float) -> float:
        """(J - J_ref) / (J* - J_ref): 0 at the reference, 1 at the optimum; nan where the reference is the optimum."""
        way = self.objective - self.reference_objective
        return (objective - self.reference_objective) / way if way > 1e-12 else float("nan")


def solve(env: Any, max_completions: int = MAX_COMPLETIONS, kl_coef: float | None = None) -> Solution:
    """The optimum of the regularised objective, `pi* = pi_ref exp(r / beta) / Z`, by the soft Bellman equation

        V*(s) = beta log sum_a pi_ref(a|s) exp(Q*(s, a) / beta),    pi*(a|s) = pi_ref(a|s) exp((Q* - V*)(s, a) / beta)

    With beta = 0 the best answer takes all: V* = max_a Q*.

    Args:
        env: an environment, or the `Tree` of one, which saves enumerating it again.
        max_completions: as in `enumerate_tree`.
        kl_coef: beta, by default the task's.

    Raises:
        TreeTooLarge: more than `max_completions` finished texts.
        ValueError: a beta that is negative or not finite.
    """
    if kl_coef is not None and not 0 <= kl_coef < float("inf"):
        raise ValueError(f"kl_coef (beta) must be a finite number >= 0, got {kl_coef}.")
    tree = env if isinstance(env, Tree) else enumerate_tree(env, max_completions)
    beta, reference = tree.mdp.kl_coef if kl_coef is None else kl_coef, tree.ref_log_probs
    allowed = tree.child != -2

    def soft(level: slice, q_values: Array) -> Array:
        if beta == 0:
            best: Array = np.where(allowed[level], q_values, -np.inf).max(axis=1)
            return best
        return beta * _logsumexp(reference[level] + q_values / beta)

    values, q_values = tree.backward(soft)
    if beta == 0:
        best = allowed & (q_values == values[:, None])
        action_log_probs = masked_log_softmax(np.where(allowed, reference, 0.0), best)
    else:
        action_log_probs = reference + (q_values - values[:, None]) / beta
    first = tree.levels[0]
    return Solution(
        kl_coef=beta,
        objective=float(values[first].mean()),
        reference_objective=evaluate_log_probs(tree, reference).objective,
        log_probs=tree.completion_log_probs(action_log_probs),
        values=values,
        action_log_probs=action_log_probs,
        tree=tree,
    )


def suboptimality_by_state(solution: Solution, evaluation: Evaluation) -> NDArray[np.float64]:
    """Which state costs how much of J* - J(pi): [S], never negative, with the sum J* - J(pi).

        cost(s) = d(s) (V*(s) - sum_a pi(a|s) (Q*(s, a) - beta log(pi(a|s) / pi_ref(a|s))))
                = d(s) beta KL(pi(.|s) || pi*(.|s))                                              (beta > 0)

    with d(s) the probability of coming through s: the performance difference lemma (Kakade and Langford 2002), which is
    the chain rule of J* - J = beta KL(pi || pi*) along the text. beta, in J too, is that of the solution.

    Raises:
        ValueError: solution and evaluation are of different environments.
    """
    if solution.tree.mdp is not evaluation.tree.mdp:
        raise ValueError("suboptimality_by_state needs a solution and an evaluation of the same environment, got two.")
    tree, beta = solution.tree, solution.kl_coef
    probs = np.exp(evaluation.log_probs)
    log_ratio = np.where(probs > 0, evaluation.log_probs - np.where(tree.child != -2, tree.ref_log_probs, 0.0), 0.0)
    best = tree.rewards + np.append(solution.values, [0.0, 0.0])[tree.child]  # Q*, KL apart; as in Tree.backward
    shortfall = solution.values - (probs * (best - beta * log_ratio)).sum(axis=1)
    return np.asarray(evaluation.occupancy * np.maximum(shortfall, 0.0))  # rounding may leave -1e-16


def _logsumexp(x: Array) -> Array:
    top = x.max(axis=-1, keepdims=True)
    total: Array = top[..., 0] + np.log(np.exp(x - top).sum(axis=-1))
    return total
