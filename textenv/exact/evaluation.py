"""Exact evaluation of a policy: objective, values, advantages and occupancy, by enumerating every completion.

    J(pi)   = E_x E_{y ~ pi} [ r(x, y) - beta log(pi(y|x) / pi_ref(y|x)) ]
    V(s_T)  = 0,   Q(s, a) = r_t(s, a) + V(s a),   V(s) = sum_a pi(a|s) Q(s, a),   A = Q - V

with r(x, y) the score and the shaping along y, and r_t(s, a) the whole reward of a in s, KL included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textenv.bound_policy import PolicyFunction, policy_logits
from textenv.categorical import masked_log_softmax
from textenv.exact.bellman import optimal_values, state_costs
from textenv.html import Html, block_html, number_text, table_html
from textenv.state import Array
from textenv.tree import MAX_COMPLETIONS, Enumerable, Level, Tree, enumerate_tree, in_batches

SHOWN = 6  # states in a notebook's tables


@dataclass(frozen=True)
class Evaluation:
    """The exact quantities of a policy. A notebook shows J, score and KL, and the states where the most of J* - J is.

    Attributes:
        objective: J(pi).
        score: E[score], without shaping.
        gold_score: E[gold score], None where the task has none.
        kl: E_x KL(pi || pi_ref), over whole completions.
        values, q_values, advantages: V [S], Q and A [S, V]; -inf for masked actions.
        log_probs: log pi(a|s), [S, V].
        occupancy: d(s), the probability that an episode visits each state, prompts drawn uniformly, [S].
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
    occupancy: NDArray[np.float64]
    tree: Tree

    def _repr_html_(self) -> Html:
        """J, score and KL; the costliest and the most visited states, with V, V* and the likeliest token of pi."""
        beta = self.tree.mdp.kl_coef
        optimal, q_values = optimal_values(self.tree, beta)
        costs = state_costs(self.tree, beta, optimal, q_values, self.log_probs, self.occupancy)
        numbers = {"J": self.objective, "score": self.score, "gold score": self.gold_score, "KL": self.kl}
        numbers |= {"J*": float(optimal[self.tree.levels[0]].mean()), "J* - J": float(costs.sum())}
        return block_html(
            ", ".join(f"{name} {number_text(value)}" for name, value in numbers.items() if value is not None),
            self._states_html("the states that cost the most of J* - J", costs, optimal, costs),
            self._states_html("the most visited states", self.occupancy, optimal, costs),
        )

    def _states_html(self, caption: str, by: Array, optimal: Array, costs: Array) -> Html:
        """A table of the states where `by` is largest, and how many more there are."""
        mdp, likeliest = self.tree.mdp, self.log_probs.argmax(axis=1)
        names = mdp.tokenizer.convert_ids_to_tokens
        rows: list[list[str | float | None]] = []
        for state in np.argsort(-by, kind="stable")[:SHOWN].tolist():
            so_far = self.tree.tokens[state]
            completion = " ".join(map(str, names(so_far[so_far >= 0].tolist())))
            token, probability = int(likeliest[state]), float(np.exp(self.log_probs[state, likeliest[state]]))
            columns = (self.occupancy, self.values, optimal, costs)
            rows.append([
                mdp.prompts.texts[self.tree.prompt[state]], completion, *(float(x[state]) for x in columns),
                str(names([token])[0]), probability,
            ])  # fmt: skip
        header = ["prompt", "completion so far", "d(s)", "V", "V*", "cost", "likeliest token", "pi"]
        more = len(by) - len(rows)
        return table_html(header, rows, caption=caption + (f" ({more:,} more states)" if more else ""))


def evaluate(env: Enumerable, policy: PolicyFunction, max_completions: int = MAX_COMPLETIONS) -> Evaluation:
    """Computes J, score, KL, V, Q and A of a policy exactly.

    Args:
        env: an environment, or its `Tree`, which saves enumerating it again.
        policy: `policy(input_ids, attention_mask) -> logits [B, V]` of the next token, or an object with
            `next_token_logits`.
        max_completions: as in `enumerate_tree`.
    """
    tree = env if isinstance(env, Tree) else enumerate_tree(env, max_completions)
    vocab_size = tree.mdp.vocab_size
    logits = in_batches(len(tree.prompt), lambda rows: policy_logits(policy, *tree.observations(rows), vocab_size))
    return evaluate_log_probs(tree, masked_log_softmax(logits, tree.child != -2))


def evaluate_log_probs(tree: Tree, log_probs: Array) -> Evaluation:
    """Evaluates a policy as `evaluate` does, given log pi(a|s) in every state, [S, V]."""
    allowed = tree.child != -2
    probs = np.exp(log_probs)
    log_ratio = np.where(probs > 0, log_probs - np.where(allowed, tree.ref_log_probs, 0.0), 0.0)
    beta = tree.mdp.kl_coef

    def expectation(level: Level, q_values: Array) -> Array:
        value: Array = (probs[level] * (q_values - beta * log_ratio[level])).sum(axis=1)
        return value

    values, q_without_kl = tree.backward(expectation)
    # an allowed action with pi(a|s) = 0 has log pi = -inf: its Q is +inf, unless beta = 0
    never_sampled = allowed & (probs == 0)
    q_values = np.where(allowed, q_without_kl - beta * log_ratio, -np.inf)
    if beta > 0:
        q_values[never_sampled] = np.inf
    first = tree.levels[0]
    occupancy = np.exp(tree.log_reach(log_probs)) / (first.stop - first.start)
    return Evaluation(
        objective=float(values[first].mean()),
        score=float((occupancy[:, None] * probs * tree.scores).sum()),
        gold_score=None if tree.gold_scores is None else float((occupancy[:, None] * probs * tree.gold_scores).sum()),
        kl=float((occupancy[:, None] * probs * log_ratio).sum()),
        values=values,
        q_values=q_values,
        advantages=q_values - values[:, None],
        log_probs=log_probs,
        occupancy=occupancy,
        tree=tree,
    )
