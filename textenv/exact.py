"""The oracle: enumerate every text of a toy, and know what agents can only estimate.

    J(pi)       = E_x E_{y ~ pi} [ r(x, y) - beta log(pi(y|x) / pi_ref(y|x)) ]
    pi*(y|x)    = pi_ref(y|x) exp(r(x, y) / beta) / Z(x),      J* = E_x beta log Z(x)
    J* - J(pi)  = beta E_x KL(pi || pi*)
    V(s_T)      = 0,   Q(s, a) = r(s, a) + V(s a),   V(s) = sum_a pi(a|s) Q(s, a),   A = Q - V

with r(x, y) the score and the shaping along y, and r(s, a) the whole reward of DESIGN, KL included. The optimum is that
of KL-regularised control: Todorov 2006; Peters et al. 2010; Rafailov et al. 2023 (arXiv:2305.18290), eq. 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.bound_policy import PolicyFunction, masked_log_softmax, policy_logits
from textenv.process import Array
from textenv.tree import BATCH, MAX_TEXTS, Tree, TreeTooLarge, enumerate_tree, in_batches


@dataclass(frozen=True)
class Solution:
    """The best policy.

    Attributes:
        kl_coef: beta, for which it is the best.
        objective: J*, the mean over prompts of beta log Z(x).
        reference_objective: J(pi_ref).
        log_probs: log pi*(y|x), [N], of the finished texts in the order of `tree.texts()`.
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

    def share(self, objective: float) -> float:
        """(J - J_ref) / (J* - J_ref): 0 at the reference, 1 at the optimum; nan where the reference is the optimum."""
        way = self.objective - self.reference_objective
        return (objective - self.reference_objective) / way if way > 1e-12 else float("nan")


@dataclass(frozen=True)
class Evaluation:
    """A policy, by enumeration.

    Attributes:
        objective: J(pi).
        score: E[score], without shaping.
        gold_score: E[gold score], None where the task has none.
        kl: E_x KL(pi || pi_ref), over whole texts.
        values, q_values, advantages: V [S], Q and A [S, V]; -inf for masked actions.
        log_probs: log pi(a|s), [S, V].
        visits: the probability of coming through each state, prompts drawn uniformly, [S].
        tree: the enumeration.
    """

    objective: float
    score: float
    gold_score: float | None
    kl: float
    values: NDArray[np.float64]
    q_values: NDArray[np.float64]
    advantages: NDArray[np.float64]
    log_probs: NDArray[np.float64]
    visits: NDArray[np.float64]
    tree: Tree


def solve(env: Any, max_texts: int = MAX_TEXTS, kl_coef: float | None = None) -> Solution:
    """The optimum of the regularised objective, `pi* = pi_ref exp(r / beta) / Z`, by the soft Bellman equation

        V*(s) = beta log sum_a pi_ref(a|s) exp(Q*(s, a) / beta),    pi*(a|s) = pi_ref(a|s) exp((Q* - V*)(s, a) / beta)

    With beta = 0 the best answer takes all: V* = max_a Q*.

    Args:
        env: an environment, or the `Tree` of one, which saves enumerating it again.
        max_texts: as in `enumerate_tree`.
        kl_coef: beta, by default the task's.

    Raises:
        TreeTooLarge: more than `max_texts` finished texts.
        ValueError: a beta that is negative or not finite.
    """
    if kl_coef is not None and not 0 <= kl_coef < float("inf"):
        raise ValueError(f"kl_coef (beta) must be a finite number >= 0, got {kl_coef}.")
    tree = env if isinstance(env, Tree) else enumerate_tree(env, max_texts)
    beta, reference = tree.process.kl_coef if kl_coef is None else kl_coef, tree.ref_log_probs
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
        log_probs=tree.text_log_probs(action_log_probs),
        values=values,
        action_log_probs=action_log_probs,
        tree=tree,
    )


def evaluate(env: Any, policy: PolicyFunction, max_texts: int = MAX_TEXTS) -> Evaluation:
    """J, score, KL, V, Q and A of a policy, exactly.

    Args:
        env: an environment, or the `Tree` of one, which saves enumerating it again.
        policy: `policy(input_ids, attention_mask) -> logits [B, V]` of the next token, or an object that has
            `next_token_logits`.
        max_texts: as in `enumerate_tree`.
    """
    tree = env if isinstance(env, Tree) else enumerate_tree(env, max_texts)
    vocab_size = tree.process.vocab_size
    logits = in_batches(len(tree.prompt), lambda rows: policy_logits(policy, *tree.observations(rows), vocab_size))
    return evaluate_log_probs(tree, masked_log_softmax(logits, tree.child != -2))


def policy_gradient(env: Any, policy: Any, max_texts: int = MAX_TEXTS) -> dict[str, Any]:
    """The exact gradient of J, by parameter name.

        grad J = sum_s d(s) sum_a pi(a|s) A(s, a) grad log pi(a|s)        (Sutton et al. 2000; A includes the KL)

    with d(s) the probability of coming through s. That r contains log pi adds nothing: E[grad log pi] = 0.

    Args:
        env: an environment or the `Tree` of one.
        policy: a torch module with `next_token_logits(input_ids, attention_mask)` that keeps gradients.
        max_texts: as in `enumerate_tree`.

    Returns:
        `{name: gradient}` for the parameters that require one; zeros where J does not depend on it.
    """
    import torch

    tree = env if isinstance(env, Tree) else enumerate_tree(env, max_texts)
    known = evaluate(tree, policy)
    probs = np.exp(known.log_probs)
    weights = known.visits[:, None] * probs * np.where(probs > 0, known.advantages, 0.0)
    named = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    with torch.enable_grad():
        for start in range(0, len(tree.prompt), BATCH):
            rows = slice(start, start + BATCH)
            logits = policy.next_token_logits(*tree.observations(rows))
            allowed = torch.as_tensor(tree.child[rows] != -2, device=logits.device)
            log_probs = logits.masked_fill(~allowed, -torch.inf).log_softmax(dim=-1).masked_fill(~allowed, 0.0)
            weight = torch.as_tensor(weights[rows], dtype=log_probs.dtype, device=log_probs.device)
            gradients = torch.autograd.grad((weight * log_probs).sum(), list(named.values()), allow_unused=True)
            for name, gradient in zip(named, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient
    return total


def attribute_gap(solution: Solution, evaluation: Evaluation) -> NDArray[np.float64]:
    """Which state costs how much of J* - J(pi): [S], never negative, with the sum J* - J(pi).

        cost(s) = d(s) (V*(s) - sum_a pi(a|s) (Q*(s, a) - beta log(pi(a|s) / pi_ref(a|s))))
                = d(s) beta KL(pi(.|s) || pi*(.|s))                                              (beta > 0)

    with d(s) the probability of coming through s: the performance difference lemma (Kakade and Langford 2002), which is
    the chain rule of J* - J = beta KL(pi || pi*) along the text. beta, in J too, is that of the solution.

    Raises:
        ValueError: solution and evaluation are of different environments.
    """
    if solution.tree.process is not evaluation.tree.process:
        raise ValueError("attribute_gap needs a solution and an evaluation of the same environment, got two.")
    tree, beta = solution.tree, solution.kl_coef
    probs = np.exp(evaluation.log_probs)
    log_ratio = np.where(probs > 0, evaluation.log_probs - np.where(tree.child != -2, tree.ref_log_probs, 0.0), 0.0)
    best = tree.rewards + np.append(solution.values, [0.0, 0.0])[tree.child]  # Q*, KL apart; as in Tree.backward
    shortfall = solution.values - (probs * (best - beta * log_ratio)).sum(axis=1)
    return np.asarray(evaluation.visits * np.maximum(shortfall, 0.0))  # rounding may leave -1e-16


def evaluate_log_probs(tree: Tree, log_probs: Array) -> Evaluation:
    """As `evaluate`, for a policy given as log pi(a|s) in every state, [S, V]."""
    allowed = tree.child != -2
    probs = np.exp(log_probs)
    log_ratio = np.where(probs > 0, log_probs - np.where(allowed, tree.ref_log_probs, 0.0), 0.0)
    beta = tree.process.kl_coef

    def expectation(level: slice, q_values: Array) -> Array:
        value: Array = (probs[level] * (q_values - beta * log_ratio[level])).sum(axis=1)
        return value

    values, before_kl = tree.backward(expectation)
    # an allowed action that pi never takes has log pi = -inf: its Q is +inf, unless beta = 0
    never = allowed & (probs == 0)
    q_values = np.where(allowed, before_kl - beta * log_ratio, -np.inf)
    if beta > 0:
        q_values[never] = np.inf
    first = tree.levels[0]
    visits = np.exp(tree.reach(log_probs)) / (first.stop - first.start)
    return Evaluation(
        objective=float(values[first].mean()),
        score=float((visits[:, None] * probs * tree.scores).sum()),
        gold_score=None if tree.gold_scores is None else float((visits[:, None] * probs * tree.gold_scores).sum()),
        kl=float((visits[:, None] * probs * log_ratio).sum()),
        values=values,
        q_values=q_values,
        advantages=q_values - values[:, None],
        log_probs=log_probs,
        visits=visits,
        tree=tree,
    )


def _logsumexp(x: Array) -> Array:
    top = x.max(axis=-1, keepdims=True)
    total: Array = top[..., 0] + np.log(np.exp(x - top).sum(axis=-1))
    return total


__all__ = [
    "Evaluation",
    "Solution",
    "TreeTooLarge",
    "attribute_gap",
    "enumerate_tree",
    "evaluate",
    "policy_gradient",
    "solve",
]
