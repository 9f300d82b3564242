"""What pi* would have done in the place of a player, on tasks that can be enumerated.

A player who always plays the completion y after the prompt x is a policy whose own log-probabilities are 0, so that

    J(y) = r(x, y) + beta log pi_ref(y|x),     V*(x) - J(y) = -beta log pi*(y|x) = sum_t cost_t
    cost_t = V*(s_t) - (Q*(s_t, a_t) + beta log pi_ref(a_t|s_t)) >= 0                  = -beta log pi*(a_t|s_t)

with r(x, y) score and shaping, and V*, Q* as in textenv/exact/solution.py: without the KL of a_t in Q*. Some of the
cost is that of playing one completion always: pi* itself plays several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from textenv import TextMDP, exact

LIMIT = 100_000  # completions of a task that is enumerated while a person waits


@dataclass(frozen=True)
class TokenComparison:
    """One token beside pi*.

    Attributes:
        advantage: Q*(s_t, a_t) - V*(s_t), without the KL of a_t.
        log_prob: log pi*(a_t|s_t).
        cost: see the module; their sum is V*(x) - J(y).
        best: the likeliest token of pi* in s_t.
    """

    advantage: float
    log_prob: float
    cost: float
    best: int


@dataclass(frozen=True)
class Comparison:
    """A completion beside pi*.

    Attributes:
        tokens: each token.
        optimum: V*(x).
        reference: V of the reference in x.
        best: the tokens of pi*'s likeliest completion.
        best_log_prob: its log-probability under pi*.
        best_objective: its J.
    """

    tokens: list[TokenComparison]
    optimum: float
    reference: float
    best: list[int]
    best_log_prob: float
    best_objective: float

    def share(self, objective: float) -> float:
        """The share of the way from the reference to the optimum, for this prompt; nan where they are equal."""
        return exact.normalized_objective(objective, self.reference, self.optimum)


def solve_task(mdp: TextMDP) -> exact.Solution | None:
    """The optimum of a task, None where it has more than 100,000 completions.

    Raises:
        textenv.rewards.RewardError: a reward function failed.
    """
    try:
        return exact.solve(exact.enumerate_tree(mdp, LIMIT))
    except exact.TreeTooLarge:
        return None


def compare(solution: exact.Solution, prompt: int, completion: Sequence[int]) -> Comparison:
    """Compares a finished completion with pi*.

    Args:
        solution: the optimum.
        prompt: the index of the prompt.
        completion: the tokens, none of which is masked.
    """
    tree, beta = solution.tree, solution.kl_coef
    reference = exact.evaluate_log_probs(tree, tree.ref_log_probs)
    tokens = []
    for state, token in zip(tree.states_of(prompt, completion), completion, strict=True):
        advantage = float(solution.q_values[state, token] - solution.values[state])
        tokens.append(
            TokenComparison(
                advantage=advantage,
                log_prob=float(solution.action_log_probs[state, token]),
                cost=max(0.0, -advantage - beta * float(tree.ref_log_probs[state, token])),  # neither -1e-16 nor -0
                best=int(solution.action_log_probs[state].argmax()),
            )
        )
    best, log_prob = likeliest(solution, prompt)
    return Comparison(
        tokens=tokens,
        optimum=float(solution.values[prompt]),
        reference=float(reference.values[prompt]),
        best=best,
        best_log_prob=log_prob,
        best_objective=_objective(solution, prompt, best),
    )


def likeliest(solution: exact.Solution, prompt: int) -> tuple[list[int], float]:
    """The likeliest completion of pi* after a prompt, which need not be that of the likeliest tokens, and log pi*."""
    tree = solution.tree
    state, action = tree.leaves()
    own = tree.prompt[state] == prompt
    row = int(np.argmax(np.where(own, solution.log_probs, -np.inf)))
    before = tree.tokens[state[row]]
    return [*before[before >= 0].tolist(), int(action[row])], float(solution.log_probs[row])


def _objective(solution: exact.Solution, prompt: int, completion: Sequence[int]) -> float:
    """J of a player who always plays a completion."""
    tree = solution.tree
    s, a = tree.states_of(prompt, completion), np.array(completion, dtype=np.int64)
    return float((tree.rewards[s, a] + solution.kl_coef * tree.ref_log_probs[s, a]).sum())
