"""The optimum of the KL-regularized objective, and each state's share of a policy's distance to it.

    pi*(y|x)    = pi_ref(y|x) exp(r(x, y) / beta) / Z(x),      J* = E_x beta log Z(x)
    J* - J(pi)  = beta E_x KL(pi || pi*)

with r(x, y) the score and the shaping along y. By state, this is the soft Bellman equation:

    V*(s) = beta log sum_a pi_ref(a|s) exp(Q*(s, a) / beta),    pi*(a|s) = pi_ref(a|s) exp((Q* - V*)(s, a) / beta)

with Q*(s, a) the score and the shaping of a in s, and V*(s a): without the KL of a itself, unlike Q in evaluation.py.
KL-regularized control: Todorov 2006; Peters et al. 2010; Rafailov et al. 2023 (arXiv:2305.18290), eq. 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textenv.arguments import check_kl_coef
from textenv.categorical import masked_log_softmax
from textenv.exact.bellman import optimal_values, state_costs
from textenv.exact.evaluation import Evaluation, evaluate_log_probs
from textenv.tree import MAX_COMPLETIONS, Enumerable, Tree, enumerate_tree


@dataclass(frozen=True)
class Solution:
    """The optimal policy pi* and its values.

    Attributes:
        kl_coef: beta, for which it is optimal.
        objective: J*, the mean over prompts of beta log Z(x).
        reference_objective: J(pi_ref).
        log_probs: log pi*(y|x), [N], of the finished completions in the order of `tree.leaves()`.
        values: V*(s), [S]; beta log Z(x) in the initial states.
        q_values: Q*(s, a), [S, V], without the KL of a itself; -inf for masked actions.
        action_log_probs: log pi*(a|s), [S, V].
        tree: the enumeration.
    """

    kl_coef: float
    objective: float
    reference_objective: float
    log_probs: NDArray[np.float64]
    values: NDArray[np.float64]
    q_values: NDArray[np.float64]
    action_log_probs: NDArray[np.float64]
    tree: Tree

    def normalized_objective(self, objective: float) -> float:
        """The share of the way from the reference to the optimum, see the function of this name."""
        return normalized_objective(objective, self.reference_objective, self.objective)


def normalized_objective(objective: float, reference: float, optimum: float) -> float:
    """(J - J_ref) / (J* - J_ref): 0 at the reference, 1 at the optimum; nan where the reference is the optimum."""
    gap = optimum - reference
    return (objective - reference) / gap if gap > 1e-12 else float("nan")


def solve(env: Enumerable, max_completions: int = MAX_COMPLETIONS, kl_coef: float | None = None) -> Solution:
    """Computes the optimum `pi* = pi_ref exp(r / beta) / Z` by the soft Bellman equation, backward in time.

    With beta = 0, pi* puts all its mass on the best completion: V* = max_a Q*.

    Args:
        env: an environment, or its `Tree`, which saves enumerating it again.
        max_completions: as in `enumerate_tree`.
        kl_coef: beta, by default the task's.

    Raises:
        TreeTooLarge: there are more than `max_completions` finished completions.
        ValueError: beta is negative, not finite in float32, or positive and less than 1e-30.
    """
    if kl_coef is not None:
        kl_coef = check_kl_coef(kl_coef)
    tree = env if isinstance(env, Tree) else enumerate_tree(env, max_completions)
    beta, reference = tree.mdp.kl_coef if kl_coef is None else kl_coef, tree.ref_log_probs
    allowed = tree.child != -2
    values, q_values = optimal_values(tree, beta)
    if beta == 0:
        best = allowed & (q_values == values[:, None])
        action_log_probs = masked_log_softmax(np.where(allowed, reference, 0.0), best)
    else:
        action_log_probs = reference + (np.where(allowed, q_values, 0.0) - values[:, None]) / beta
    first = tree.levels[0]
    return Solution(
        kl_coef=beta,
        objective=float(values[first].mean()),
        reference_objective=evaluate_log_probs(tree, reference).objective,
        log_probs=tree.completion_log_probs(action_log_probs),
        values=values,
        q_values=q_values,
        action_log_probs=action_log_probs,
        tree=tree,
    )


def suboptimality_by_state(solution: Solution, evaluation: Evaluation) -> NDArray[np.float64]:
    """Decomposes J* - J(pi) by state: [S], never negative, with the sum J* - J(pi).

        cost(s) = d(s) (V*(s) - sum_a pi(a|s) (Q*(s, a) - beta log(pi(a|s) / pi_ref(a|s))))
                = d(s) beta KL(pi(.|s) || pi*(.|s))                                              (beta > 0)

    with d(s) the probability that an episode visits s: the performance difference lemma (Kakade and Langford 2002),
    which is the chain rule of J* - J = beta KL(pi || pi*) along the completion. J here is that of the solution's beta:
    with a `solve(kl_coef=)` other than the task's, the sum is not `solution.objective - evaluation.objective`.

    Raises:
        ValueError: solution and evaluation belong to different environments.
    """
    if solution.tree.mdp is not evaluation.tree.mdp:
        raise ValueError("suboptimality_by_state needs a solution and an evaluation of the same environment, got two.")
    of_policy = (evaluation.log_probs, evaluation.occupancy)
    return state_costs(solution.tree, solution.kl_coef, solution.values, solution.q_values, *of_policy)
