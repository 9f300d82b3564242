"""The exact oracle of a toy: the optimum, and the values and the gradient of any policy, by full enumeration.

Where there is too much to enumerate, `estimate_optimum` estimates the optimum alone.
"""

from textenv.categorical import masked_log_softmax
from textenv.exact.estimate import MIN_EFFECTIVE_SAMPLES, OptimumEstimate, estimate_optimum, optimum_from_scores
from textenv.exact.evaluation import Evaluation, evaluate, evaluate_log_probs
from textenv.exact.gradient import policy_gradient
from textenv.exact.reference_samples import largest_reward
from textenv.exact.solution import Solution, normalized_objective, solve, suboptimality_by_state
from textenv.tree import Tree, TreeTooLarge, enumerate_tree

__all__ = [
    "MIN_EFFECTIVE_SAMPLES",
    "Evaluation",
    "OptimumEstimate",
    "Solution",
    "Tree",
    "TreeTooLarge",
    "enumerate_tree",
    "estimate_optimum",
    "evaluate",
    "evaluate_log_probs",
    "largest_reward",
    "masked_log_softmax",
    "normalized_objective",
    "optimum_from_scores",
    "policy_gradient",
    "solve",
    "suboptimality_by_state",
]
