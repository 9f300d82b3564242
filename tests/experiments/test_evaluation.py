"""Evaluations: estimates against exact values, shared prompts, tokens to reach a share of the way."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from agents.policy import TransformerPolicy
from experiments.evaluation import Evaluator, sample_completions
from experiments.share import normalized_objective, tokens_to_reach
from experiments.trial import initial_policy
from tests.helpers.commands import save_random_policy, tiny
from tests.helpers.policies import random_policy
from tests.helpers.tasks import golden, letter_values, words
from textenv import exact


def test_estimates_agree_with_the_exact_values(initial: Path) -> None:
    """Sampled J, score and KL are within 5 standard errors of the exact ones, and are the same at every call."""
    config = tiny()
    env = config.make_env()
    known = Evaluator.for_env(env, 512)
    assert known.solution is not None
    sampled = Evaluator(env, 512, None)
    policy = initial_policy(config, env, initial)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    truth, estimate = known.measure(policy), sampled.measure(policy)
    assert estimate == sampled.measure(policy)
    for name in ("objective", "score", "kl"):
        assert abs(truth[name] - estimate[name]) < 5 * estimate[f"{name}_stderr"]
    baselines = known.baselines()
    assert normalized_objective(known.solution.objective, baselines) == pytest.approx(1.0)
    assert normalized_objective(known.solution.reference_objective, baselines) == pytest.approx(0.0)


def test_samples_have_score_kl_and_gold_score() -> None:
    """Those of their tokens: the scores are computed again, and the log-ratios from the tree of all completions."""
    env = gym.make_vec("textenv/Text-v0", **words(gold_reward=golden))
    policy, mdp = random_policy(env), env.unwrapped.mdp
    evaluator = Evaluator.for_env(env, 16)
    tree = evaluator.tree
    assert evaluator.env is env and tree is not None
    log_ratio = exact.evaluate(tree, policy).log_probs - tree.ref_log_probs
    candidates = []  # of a text there are several: with and without the end token
    for path, taken in zip(*tree.paths(), strict=True):
        tokens = taken[taken >= 0].tolist()
        prompt = mdp.prompts.texts[tree.prompt[path[0]]]
        candidates.append((prompt, mdp.decode(np.array(tokens)), tokens, log_ratio[path[: len(tokens)], tokens].sum()))
    rows = sample_completions(env, policy, list(env.unwrapped.prompts) * 4)
    assert len({row["completion"] for row in rows}) > 3
    for row in rows:
        assert row.keys() == {"prompt", "completion", "score", "kl", "gold_score"}
        same = [each for each in candidates if each[:2] == (row["prompt"], row["completion"])]
        prompt, text, tokens, kl = min(same, key=lambda each: abs(each[3] - row["kl"]))
        assert row["kl"] == pytest.approx(kl, abs=1e-4)
        assert row["score"] == pytest.approx(letter_values([prompt], [text], [tokens])[0])
        assert row["gold_score"] == pytest.approx(golden([prompt], [text], [tokens])[0])


def test_scores_near_the_largest_number_have_a_mean() -> None:
    """Their sum is not finite in float32."""

    def huge(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        return [3e38 if len(ids) % 2 else 2e38 for ids in completion_ids]

    env = gym.make_vec("textenv/Text-v0", **words(reward=huge, kl_coef=0.0))
    measured = Evaluator(env, 64, None).measure(random_policy(env))
    assert 2e38 < measured["score"] == measured["objective"] < 3e38
    assert all(map(math.isfinite, measured.values()))


def test_an_estimated_gold_score_agrees_with_the_exact_one(tmp_path: Path) -> None:
    """Sampled E[gold score] is within 5 standard errors of the exact one; a task without a gold reward has none."""
    env = tiny(env="textenv/RewardHacking-v0", env_args={}).make_env()
    policy = TransformerPolicy.from_pretrained(save_random_policy(env, tmp_path))
    truth, estimate = Evaluator.for_env(env, 512).measure(policy), Evaluator(env, 512, None).measure(policy)
    assert 0 < estimate["gold_score_stderr"] < 0.1
    assert abs(truth["gold_score"] - estimate["gold_score"]) < 5 * estimate["gold_score_stderr"]
    assert abs(truth["score"] - estimate["gold_score"]) > 5 * estimate["gold_score_stderr"]  # control
    toy = tiny().make_env()
    for evaluator in (Evaluator.for_env(toy, 16), Evaluator(toy, 16, None)):
        assert not any("gold" in name for name in evaluator.measure(random_policy(toy)))


def test_evaluations_share_their_prompts(initial: Path) -> None:
    """Every policy gets the same prompts in every batch, however long its completions are."""
    config = tiny(env_args={"vocab_size": 4, "max_new_tokens": 4, "num_prompts": 5})
    env = config.make_env()
    evaluator = Evaluator(env, 200, None)
    shape = GPT2Config(vocab_size=4, n_embd=8, n_layer=1, n_head=1, n_positions=16)
    short, long = (TransformerPolicy(GPT2LMHeadModel(shape)) for _ in range(2))
    with torch.no_grad():
        short.model.transformer.ln_f.bias += 5 * short.model.lm_head.weight[0] / 0.02
    one, other = evaluator.rollouts(short), evaluator.rollouts(long)
    assert len(one) == len(other) == 4
    assert all(a.prompt.equal(b.prompt) for a, b in zip(one, other, strict=True))
    assert any(a.mask.sum() != b.mask.sum() for a, b in zip(one, other, strict=True))
    assert not one[0].prompt.equal(one[1].prompt)


def test_tokens_to_reach_interpolates_the_curve() -> None:
    """The first crossing, interpolated linearly between two evaluations; None where there is none."""
    baselines = {"reference": 1.0, "optimum": 3.0}
    rows = [
        {"num_timesteps": 0, "eval/objective": 1.0},
        {"num_timesteps": 50},
        {"num_timesteps": 100, "eval/objective": 2.6},
        {"num_timesteps": 200, "eval/objective": 3.0},
        {"num_timesteps": 300, "eval/objective": 2.0},
    ]
    assert tokens_to_reach(0.8, rows, baselines) == pytest.approx(100)
    assert tokens_to_reach(0.9, rows, baselines) == pytest.approx(150)
    assert tokens_to_reach(0.4, rows, baselines) == pytest.approx(50)
    assert tokens_to_reach(1.1, rows, baselines) is None
    assert tokens_to_reach(0.9, rows, {"reference": 1.0, "optimum": None}) is None
    assert tokens_to_reach(0.0, rows, baselines) == 0.0
