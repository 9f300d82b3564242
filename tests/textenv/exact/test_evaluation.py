"""Exact evaluation against sums over all completions, played by single steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.brute_force import Completion, all_completions, by_completion
from tests.helpers.tasks import (
    RandomPolicy,
    golden,
    letter_values,
    make,
    tasks,
    words,
)
from textenv import TextMDP, exact
from textenv.tree import enumerate_tree


@settings(max_examples=12, deadline=None)
@given(arguments=tasks(max_vocab=4, max_tokens=3), seed=st.integers(0, 99))
def test_evaluate_equals_the_mean_over_all_completions(arguments: dict[str, Any], seed: int) -> None:
    """J, E[score] and KL are sums over all completions of pi(y|x) times the return of y in an env with pi bound."""
    policy = RandomPolicy(len(arguments["tokenizer"]), seed)
    env, known = make(arguments, policy=policy), exact.evaluate(TextMDP(**arguments), policy)
    log_probs = by_completion(known.tree, known.tree.completion_log_probs(known.log_probs))
    completions = all_completions(env)
    assert completions.keys() == log_probs.keys()
    prompts, beta = len(env.unwrapped.prompts), arguments["kl_coef"]
    objective = kl = 0.0
    for completion, steps in completions.items():
        weight = np.exp(log_probs[completion]) / prompts
        objective += weight * sum(reward for reward, _ in steps)
        kl += weight * (log_probs[completion] - sum(ref for _, ref in steps))
    assert known.objective == pytest.approx(objective, abs=1e-9)
    assert known.kl == pytest.approx(kl, abs=1e-9)
    shaping = float((known.occupancy[:, None] * np.exp(known.log_probs) * known.tree.shaping).sum())
    assert known.objective == pytest.approx(known.score + shaping - beta * known.kl, abs=1e-9)
    other = exact.evaluate(known.tree, RandomPolicy(len(arguments["tokenizer"]), seed + 1))  # negative control
    assert known.tree.num_completions <= prompts or other.objective != pytest.approx(objective, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 99))
def test_values_are_consistent(arguments: dict[str, Any], seed: int) -> None:
    """V = sum pi Q, A = Q - V, sum pi A = 0, Q = r + V(s'), occupancy flow from parent to child, J = mean V(s_0)."""
    policy = RandomPolicy(len(arguments["tokenizer"]), seed)
    known = exact.evaluate(TextMDP(**arguments), policy)
    tree, probs = known.tree, np.exp(known.log_probs)
    allowed = tree.child != -2
    q_values = np.where(allowed, known.q_values, 0.0)
    assert np.isneginf(known.q_values[~allowed]).all() and not probs[~allowed].any()
    assert (probs * q_values).sum(axis=1) == pytest.approx(known.values, abs=1e-9)
    assert known.advantages[allowed] == pytest.approx((known.q_values - known.values[:, None])[allowed])
    assert (probs * np.where(allowed, known.advantages, 0.0)).sum(axis=1) == pytest.approx(0.0, abs=1e-9)
    parent, action = np.nonzero(tree.child >= 0)
    assert known.occupancy[tree.child[parent, action]] == pytest.approx(known.occupancy[parent] * probs[parent, action])
    ends = np.nonzero(tree.child == -1)
    assert (known.occupancy[ends[0]] * probs[ends]).sum() == pytest.approx(1.0)
    assert known.objective == pytest.approx(known.values[tree.levels[0]].mean())
    # Q(s, a) is the reward of the step, plus V of the next state
    env, rng = make(arguments, policy=policy), np.random.default_rng(seed)
    for state in rng.integers(len(tree.prompt), size=5):
        prefix = [int(t) for t in tree.tokens[state] if t >= 0]
        for token in np.flatnonzero(allowed[state]):
            env.reset(options={"prompt": int(tree.prompt[state]), "completion": prefix})
            _, reward, terminated, _, _ = env.step(int(token))
            after = 0.0 if terminated else known.values[tree.child[state, token]]
            assert known.q_values[state, token] == pytest.approx(reward + after, abs=1e-9)


def gold_of_all_completions(env: Any) -> dict[Completion, float]:
    """info["gold_score"] of every finished completion, from single steps."""
    gold = {}
    for prompt, tokens in all_completions(env):
        env.reset(options={"prompt": prompt, "completion": list(tokens[:-1])})
        gold[prompt, tokens] = env.step(tokens[-1])[-1]["gold_score"]
    return gold


@settings(max_examples=12, deadline=None)
@given(arguments=tasks(max_vocab=4, max_tokens=3), seed=st.integers(0, 99))
def test_the_gold_score_is_a_mean_over_all_completions(arguments: dict[str, Any], seed: int) -> None:
    """tree.gold_scores equal those of single steps; E[gold score] is their mean; no other quantity changes."""
    policy = RandomPolicy(len(arguments["tokenizer"]), seed)
    env = make(arguments | {"gold_reward": golden})
    tree = enumerate_tree(env)
    known, plain = exact.evaluate(tree, policy), exact.evaluate(TextMDP(**arguments), policy)
    gold_scores = gold_of_all_completions(env)
    assert tree.gold_scores is not None and known.gold_score is not None
    assert by_completion(tree, tree.gold_scores[tree.leaves()]) == pytest.approx(gold_scores, abs=1e-12)
    assert not tree.gold_scores[tree.child != -1].any()
    probs = by_completion(tree, np.exp(tree.completion_log_probs(known.log_probs)))
    expected = sum(probs[y] * gold for y, gold in gold_scores.items()) / len(env.unwrapped.prompts)
    assert known.gold_score == pytest.approx(expected, abs=1e-9)
    assert plain.gold_score is None and plain.tree.gold_scores is None
    assert (known.objective, known.score, known.kl) == (plain.objective, plain.score, plain.kl)
    # negative control: another policy has another mean
    other = exact.evaluate(tree, RandomPolicy(len(arguments["tokenizer"]), seed + 1, scale=2.0)).gold_score
    assert tree.num_completions <= len(env.unwrapped.prompts) or other != pytest.approx(expected, abs=1e-9)


def test_the_gold_score_of_the_reward_itself_is_the_score() -> None:
    """Where gold reward and reward are one function the two scores are equal; the gold reward changes no optimum."""
    own, other = (enumerate_tree(TextMDP(**words(gold_reward=gold))) for gold in (letter_values, golden))
    known = exact.evaluate(own, RandomPolicy(4))
    assert known.gold_score == known.score != exact.evaluate(other, RandomPolicy(4)).gold_score
    assert exact.solve(own).objective == exact.solve(other).objective
