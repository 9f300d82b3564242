"""Baselines that are not trained, against enumeration and sampling."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.sampling import collect
from experiments import reference_completions
from experiments.baselines import best_of_n, best_of_n_log_probs, random_policy
from experiments.evaluation import Evaluator
from tests.helpers.policies import random_policy as arbitrary_policy
from textenv import exact
from textenv.shaping import length_penalty

TOY = {"vocab_size": 3, "max_new_tokens": 2, "num_prompts": 2, "kl_coef": 0.3}


def toy(**arguments: Any) -> Any:
    """A toy with 14 completions."""
    return gym.make_vec("textenv/Toy-v0", **(TOY | arguments))


def sequence_rewards(tree: Any) -> np.ndarray:
    """Score and shaping of each completion, summed along its path."""
    states, actions = tree.paths()
    return np.array(
        [
            sum(tree.rewards[s, a] for s, a in zip(row, column, strict=True) if s >= 0)
            for row, column in zip(states, actions, strict=True)
        ]
    )


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("task", ["toy", "ties"])
def test_best_of_n_equals_enumerating_all_tuples(n: int, task: str) -> None:
    """Against all n-tuples of completions, each with its probability; ties share it; the KL is within its bound."""
    env = toy() if task == "toy" else toy(shaping=length_penalty(0.1))
    tree = exact.enumerate_tree(env)
    if task == "ties":
        rounding = 1e-12 * np.random.default_rng(0).random(tree.scores.shape)  # ties may differ in their last bits
        tree.scores[:] = np.round(tree.scores) / 10 + rounding
        tree.scores[tree.child != -1] = 0.0
    log_ref, returns = tree.completion_log_probs(tree.ref_log_probs), sequence_rewards(tree)
    state, _ = tree.leaves()
    expected = np.zeros(len(state))
    for prompt in (0, 1):
        completions = np.flatnonzero(tree.prompt[state] == prompt)
        for sampled in itertools.product(completions, repeat=n):
            probability = np.exp(log_ref[list(sampled)].sum())
            best = [y for y in sampled if returns[y] > max(returns[list(sampled)]) - 1e-9]
            for y in best:  # each of the best is kept in proportion to how often it was sampled
                expected[y] += probability / len(best)
    found = np.exp(best_of_n_log_probs(tree, n))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    measured = best_of_n(Evaluator(env, 1, exact.solve(tree)), n)
    assert -1e-9 <= measured["kl"] <= np.log(n) - (n - 1) / n + 1e-9
    kl = float((expected / 2 * (np.log(expected) - log_ref)).sum())
    assert measured["kl"] == pytest.approx(kl, abs=1e-9)
    assert measured["objective"] == pytest.approx(float((expected / 2 * returns).sum()) - 0.3 * kl)
    assert np.abs(found - np.exp(log_ref)).max() > 0.01 or n == 1  # control


def test_sampled_best_of_n_agrees_with_the_exact_one() -> None:
    """Without enumeration the score agrees within its error, the KL is at least the exact one, and J is not above."""
    env = toy(vocab_size=5, max_new_tokens=4)
    known = best_of_n(Evaluator.for_env(env, 1), 4)
    sampled = best_of_n(Evaluator(env, 2048, None), 4)
    assert sampled["score"] == pytest.approx(known["score"], abs=0.08)
    assert abs(best_of_n(Evaluator.for_env(env, 1), 1)["score"] - known["score"]) > 0.3  # control
    assert known["kl"] <= sampled["kl"] and sampled["objective"] < known["objective"] + 0.08


def test_completions_are_sampled_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call samples at most CHUNK completions, and all those of a prompt compete."""
    env, sizes = toy(vocab_size=5, max_new_tokens=4), []

    def counting(*args: Any, **kwargs: Any) -> Any:
        rollout = collect(*args, **kwargs)
        sizes.append((len(rollout), rollout.prompt.tolist()))
        return rollout

    monkeypatch.setattr(reference_completions, "collect", counting)
    whole = best_of_n(Evaluator(env, 64, None), 16)
    assert [size for size, _ in sizes] == [1024]
    prompts = [prompt for _, batch in sizes for prompt in batch]
    assert prompts == [0] * 512 + [1] * 512
    sizes.clear()
    monkeypatch.setattr(reference_completions, "CHUNK", 100)
    chunked = best_of_n(Evaluator(env, 64, None), 16)
    assert [size for size, _ in sizes] == [100] * 10 + [24]
    assert [prompt for _, batch in sizes for prompt in batch] == prompts
    assert chunked["score"] == pytest.approx(whole["score"], abs=0.1) and chunked["kl"] == whole["kl"]


@pytest.mark.filterwarnings("error")
def test_a_large_n_keeps_the_best() -> None:
    """Without a warning where completions of low reward get probability 0."""
    env = toy(vocab_size=4, max_new_tokens=4)
    measured = best_of_n(Evaluator.for_env(env, 1), 100_000)
    assert np.isfinite(list(measured.values())).all()


@pytest.mark.parametrize("env_id", ["textenv/Toy-v0", "textenv/TajMahal-v0"])
def test_random_is_uniform_over_allowed_tokens(env_id: str) -> None:
    """Every allowed token has the same probability; the given policy is not changed."""
    env = gym.make_vec(env_id)
    reference = arbitrary_policy(env)
    before = [p.clone() for p in reference.parameters()]
    tree = exact.enumerate_tree(env)
    known = exact.evaluate(tree, random_policy(reference))
    allowed = tree.child != -2
    expected = np.where(allowed, 1 / allowed.sum(axis=1, keepdims=True), 0.0)
    np.testing.assert_allclose(np.exp(known.log_probs), expected, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, reference.parameters(), strict=True))


def test_the_gold_score_of_best_of_n_is_exact() -> None:
    """That of the kept completions, by their probabilities; best of 1 has the reference's."""
    env = gym.make("textenv/RewardHacking-v0")
    tree = exact.enumerate_tree(env)
    for n in (1, 4):
        probabilities = np.exp(best_of_n_log_probs(tree, n)) / len(tree.mdp.prompts.texts)
        expected = float((probabilities * tree.gold_scores[tree.leaves()]).sum())
        assert best_of_n(Evaluator.for_env(env, 1), n)["gold_score"] == pytest.approx(expected)
