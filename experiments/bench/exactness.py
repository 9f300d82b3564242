"""The cost of `textenv.exact` on over a million completions: seconds, evaluated states and memory of each function.

Each state is evaluated once, however many completions pass through it. A round includes the enumeration of the tree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from agents.policy import TransformerPolicy
from experiments.bench.protocol import Round, RoundResult
from textenv import exact, get_mdp
from textenv.exact import Tree


@dataclass(frozen=True)
class ExactWork:
    """A Toy-v0 task; with the defaults it has 1,195,742 completions and 132,860 states."""

    vocab_size: int = 10
    max_new_tokens: int = 6
    num_prompts: int = 2

    def environment(self) -> Any:
        """Creates the environment."""
        return gym.make(
            "textenv/Toy-v0",
            vocab_size=self.vocab_size,
            max_new_tokens=self.max_new_tokens,
            num_prompts=self.num_prompts,
        )


def solve(work: ExactWork) -> Round:
    """`exact.solve`, which evaluates the reference in every state."""
    env = work.environment()
    evaluated = count_rows(get_mdp(env).reference, "log_probs")
    return lambda: result_of(exact.solve(env).tree, evaluated)


def evaluate(work: ExactWork) -> Round:
    """`exact.evaluate` of a GPT-2 with 2 layers of width 64."""
    env = work.environment()
    policy = TransformerPolicy.for_env(env)
    evaluated = count_rows(policy, "next_token_logits")
    return lambda: result_of(exact.evaluate(env, policy).tree, evaluated)


def policy_gradient(work: ExactWork) -> Round:
    """`exact.policy_gradient` of the same policy: evaluates it, then runs every state again with gradients."""
    env = work.environment()
    policy = TransformerPolicy.for_env(env)
    evaluated = count_rows(policy, "next_token_logits")
    tree = exact.enumerate_tree(env)

    def run_round() -> RoundResult:
        exact.policy_gradient(env, policy)
        return result_of(tree, evaluated)

    return run_round


def result_of(tree: Tree, evaluated: list[int]) -> RoundResult:
    """The result of a round: completions of the tree, and states that were evaluated."""
    states = float(sum(evaluated))
    evaluated.clear()
    return RoundResult(tree.num_completions, {}, {"states": states})


def count_rows(owner: Any, name: str) -> list[int]:
    """Wraps `owner.name`; returns a list to which each call appends its batch size."""
    call, rows = getattr(owner, name), list[int]()

    def counted(input_ids: Any, attention_mask: Any) -> Any:
        rows.append(len(input_ids))
        return call(input_ids, attention_mask)

    setattr(owner, name, counted)
    return rows


EXACT: dict[str, Callable[[ExactWork], Round]] = {
    "exact solve": solve,
    "exact evaluate": evaluate,
    "exact policy gradient": policy_gradient,
}
