"""What the oracle takes on more than a million texts: seconds, states that are read, and memory, a function a process.

Each state is asked once, however many texts go through it; the texts of a round include those of enumerating them.
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
    """Toy-v0; as it is here it has 1,195,742 texts and 132,860 states."""

    vocab_size: int = 10
    max_new_tokens: int = 6
    num_prompts: int = 2

    def environment(self) -> Any:
        """Made anew."""
        return gym.make(
            "textenv/Toy-v0",
            vocab_size=self.vocab_size,
            max_new_tokens=self.max_new_tokens,
            num_prompts=self.num_prompts,
        )


def solve(work: ExactWork) -> Round:
    """`exact.solve`; it is the reference that reads."""
    env = work.environment()
    read = count_rows(get_mdp(env).reference, "log_probs")
    return lambda: played(exact.solve(env).tree, read)


def evaluate(work: ExactWork) -> Round:
    """`exact.evaluate` of a 2x64 GPT-2."""
    env = work.environment()
    policy = TransformerPolicy.for_env(env)
    read = count_rows(policy, "next_token_logits")
    return lambda: played(exact.evaluate(env, policy).tree, read)


def policy_gradient(work: ExactWork) -> Round:
    """`exact.policy_gradient` of the same: it evaluates first, then reads every state once more with gradients."""
    env = work.environment()
    policy = TransformerPolicy.for_env(env)
    read = count_rows(policy, "next_token_logits")
    tree = exact.enumerate_tree(env)

    def play() -> RoundResult:
        exact.policy_gradient(env, policy)
        return played(tree, read)

    return play


def played(tree: Tree, read: list[int]) -> RoundResult:
    """A round: the finished texts, and the states that were read for them."""
    states = float(sum(read))
    read.clear()
    return RoundResult(tree.num_completions, {}, {"states": states})


def count_rows(owner: Any, name: str) -> list[int]:
    """From now on the number of texts of each call of `owner.name` is appended to the list that is returned."""
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
