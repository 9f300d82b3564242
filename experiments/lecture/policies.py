"""Policies that several claims measure: partly trained, and between the reference and the optimum."""

from __future__ import annotations

from agents import ActorCritic
from agents.policy import TransformerPolicy
from textenv import EnvLike, exact
from textenv.exact import masked_log_softmax


def partly_trained_policy(env: EnvLike, total_timesteps: int = 3000) -> TransformerPolicy:
    """A transformer between the reference and the optimum: the result of a short run of ActorCritic."""
    policy = TransformerPolicy.for_env(env)
    return ActorCritic(policy, env, learning_rate=1e-3, seed=0).learn(total_timesteps).policy


def interpolated_policy(env: EnvLike, share: float) -> exact.Evaluation:
    """The exact evaluation of a policy whose logits lie `share` of the way from the reference's to the optimum's."""
    solution = exact.solve(env)
    logits = (1 - share) * solution.tree.ref_log_probs + share * solution.action_log_probs
    return exact.evaluate_log_probs(solution.tree, masked_log_softmax(logits, solution.tree.child != -2))
